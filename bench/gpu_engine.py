"""Part of gpu.py that trains through DeepSpeed: time and memory of steps, beside what `bali-ds plan` says of them."""

import contextlib
import gc
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch

from bali_ds.checkpoint.manager import RunProgress
from bali_ds.config import Recipe
from bali_ds.data.sampler import Position
from bali_ds.model.build_model import build_aligner
from bali_ds.planning.batch_plan import plan_batches
from bali_ds.planning.flops import StepFlops
from bali_ds.planning.run_data import RunData
from bali_ds.planning.run_plan import plan
from bali_ds.training.engine import accelerate, build_engine, deepspeed_settings
from bali_ds.training.step import train_step
from bench.gpu_bench import BERT_BASE, BERT_LARGE, FASTEST, ROOT, TINY, Bench, Figures
from tests.ports import free_port

STEPS, SMALL_STEPS = 8, 3


def engine(bench: Bench) -> Figures:
    """Steps of BERT-base and BERT-large in bfloat16 as training takes them on one rank, from loader to update."""
    base, large = (TINY, TINY) if bench.small else (BERT_BASE, BERT_LARGE)
    cases: dict[str, tuple[dict[str, int], int, dict[str, Any]]] = {
        "base, ZeRO 1": (base, 1, {}),
        "large, ZeRO 3": (large, 3, {}),
        "large, ZeRO 3, checkpointing": (large, 3, {"text_encoder": FASTEST | {"gradient_checkpointing": True}}),
        "large, ZeRO 2": (large, 2, {}),
        "large, ZeRO 2, micro-batches": (large, 2, {"batch": {"passages": 256, "micro_batches": 2}}),
    }
    if bench.small:
        cases = {name: cases[name] for name in ("base, ZeRO 1", "large, ZeRO 3, checkpointing")}
    rows = {}
    with _one_rank():
        for name, (shape, stage, changes) in cases.items():
            settings = {"batch": {"passages": 256}, "text_encoder": FASTEST, "data": bench.files(workers=2)}
            settings |= changes
            if bench.small:
                settings["batch"] = settings["batch"] | {"passages": 16}
            recipe = bench.recipe("engine", shape, steps=_count(bench), **settings).model_copy(
                update={"precision": "bf16", "deepspeed": ROOT / f"ds_configs/zero{stage}.json"}
            )
            rows[name] = _steps(bench, recipe)
            print(f"  {name}: {rows[name]}", flush=True)
    return {"rows": rows}


def _count(bench: Bench) -> int:
    return SMALL_STEPS if bench.small else STEPS


@contextlib.contextmanager
def _one_rank() -> Iterator[None]:
    rendezvous = {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    os.environ.update(rendezvous)
    deepspeed.init_distributed(verbose=False)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
        for name in rendezvous:
            del os.environ[name]


def _steps(bench: Bench, recipe: Recipe) -> Figures:
    on_gpu = bench.device == "cuda"
    gc.collect()  # fused layers refer to themselves: those of other parts would count as memory that is freed here
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    data = RunData.open(recipe)
    settings = deepspeed_settings(recipe, plan_batches(recipe, 1, len(data.shards.split("train"))))
    aligner = build_aligner(recipe, 2 * data.graph.num_relations, data.shards)
    flops = StepFlops.of(aligner)
    accelerate(aligner.text, recipe, settings, torch.device(bench.device))
    trained = build_engine(aligner, recipe, settings)
    waits, times, operations = [], [], []
    progress = RunProgress(0, Position())
    with data.loader(recipe, rank=0, world_size=1) as loader:
        for _ in range(_count(bench)):
            begin = time.perf_counter()
            batch = next(loader)
            waits.append(time.perf_counter() - begin)
            progress = train_step(trained, batch, progress, learning_rate_factor=1.0).progress
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
            operations.append(sum(flops.count(each)[1] for each in batch.micro_batches))
    trained.destroy()
    measured = torch.cuda.max_memory_allocated() - before if on_gpu else 0
    planned = plan(recipe, ranks=1, on_gpu=on_gpu)
    peak = planned.memory[planned.stage].peak
    # the first steps compile kernels
    seconds, work = (statistics.median(column[_count(bench) // 2 :]) for column in (times, operations))
    figures = {"seconds": seconds, **bench.utilization(work, seconds), "data_wait": sum(waits[1:]) / sum(times[1:])}
    if on_gpu:
        figures |= {"peak_bytes": measured, "planned_bytes": peak, "planned over measured": peak / measured}
    return figures
