"""Parts of gpu.py for one training step: random state under recomputation, time, kernels and synchronizations."""

import re
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from bali_ds.data.batch import Batch, PackedSequences
from bali_ds.planning.flops import StepFlops
from bench.gpu_bench import BERT_BASE, LAYER_CODE, TINY, Bench, Figures, profiled

_PACKAGE_FILE = re.compile(r".*/((?:bali_ds|deepspeed)/.*)")


def random_state(bench: Bench) -> Figures:
    """Dropout under micro-batches: recomputation must repeat the masks of the forward pass."""
    recipe = bench.recipe("micro", TINY, batch={"passages": 16, "micro_batches": 2})
    aligner, loader = bench.aligner(recipe)
    with loader:
        micro_batches = [each.to(torch.device(bench.device)) for each in next(loader).micro_batches]

    def gradients() -> list[Tensor]:
        aligner.zero_grad()
        torch.manual_seed(3)
        aligner(micro_batches)[0].backward()
        return [parameter.grad.clone() for parameter in aligner.parameters() if parameter.grad is not None]

    recomputed = gradients()
    with mock.patch("bali_ds.model.aligner.checkpoint", lambda run, *given, **_: run(*given)):
        kept = gradients()
    # relative to all gradients: those of key biases are 0 but for rounding, which differs between runs on a GPU
    whole = torch.stack([gradient.norm() for gradient in kept]).norm()
    error = max(float((a - b).norm() / whole) for a, b in zip(recomputed, kept, strict=True))
    assert error < 1e-4, f"gradients of recomputed micro-batches are off by {error:.1e}"
    return {"relative_error": error}


def step(bench: Bench) -> Figures:
    """A training step of BERT-base in bfloat16: time, model FLOPs utilization, kernels, synchronizations."""
    rows = {}
    for tokens in (None, 128):
        for code in LAYER_CODE if bench.device == "cuda" else ("eager",):
            name = f"{tokens or 'sampled'} tokens, {code}"
            rows[name] = _step(bench, TINY if bench.small else BERT_BASE, 16 if bench.small else 256, tokens, code)
            print(f"  {name}: { ({key: value for key, value in rows[name].items() if key != 'longest'}) }", flush=True)
    return {"rows": rows}


def _step(bench: Bench, shape: dict[str, int], passages: int, tokens: int | None, code: str) -> Figures:
    """Measure steps of a shape; `tokens` are those of every passage, None for the lengths of the sample."""
    recipe = bench.recipe("step", shape, batch={"passages": passages}, precision="bf16")
    aligner, loader = bench.aligner(recipe)
    with loader:
        steps = [made.micro_batches for made in islice(loader, 2)]
    if tokens:
        steps = [[_lengthened(each, tokens) for each in micro_batches] for micro_batches in steps]
    LAYER_CODE[code](aligner.text)
    counted = [StepFlops.of(aligner).count(each) for micro_batches in steps for each in micro_batches]
    steps = [[each.to(torch.device(bench.device)) for each in micro_batches] for micro_batches in steps]
    optimizer = torch.optim.AdamW(aligner.parameters(), lr=1e-5, fused=bench.device == "cuda")

    def work() -> None:
        for micro_batches in steps:
            aligner(micro_batches)[0].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    begin = time.perf_counter()
    work()
    first = time.perf_counter() - begin
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = bench.seconds(work) / len(steps)
    tokens_read, operations = (sum(column) / len(steps) for column in zip(*counted, strict=True))
    figures: Figures = {"passages": passages, "tokens": tokens_read, "seconds": seconds, "first_seconds": first}
    figures |= bench.utilization(operations, seconds)
    if bench.device == "cuda":
        figures["peak bytes"] = torch.cuda.max_memory_allocated()
        figures |= _profiled(work, len(steps)) | {"synchronizations": _synchronizations(work)}
    return figures


def _lengthened(batch: Batch, tokens: int) -> Batch:
    """Return a batch whose passages have as many tokens each, a share of 15 % of them labeled."""
    count = len(batch.passages.lengths)
    ids = batch.passages.input_ids.repeat(-(-count * tokens // len(batch.passages.input_ids)))[: count * tokens]
    lengths = torch.full((count,), tokens)
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    labeled = torch.arange(0, len(ids), 7)
    return replace(
        batch,
        passages=PackedSequences(ids, torch.arange(tokens).repeat(count), offsets, lengths),
        labeled_tokens=labeled,
        labels=ids[labeled],
    )


def _profiled(work: Callable[[], None], steps: int) -> Figures:
    """Return the time of the host and of kernels in a step, the number of kernels, and those that took longest."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    host = time.perf_counter() - begin
    figures = profiled(work, longest=24)
    rows = {name: [each / steps for each in row] for name, row in figures.pop("longest").items()}
    return {"host_seconds": host / steps, **{name: value / steps for name, value in figures.items()}, "longest": rows}


def _synchronizations(work: Callable[[], None]) -> list[str]:
    """Return the places at which the host waits for the device, by the innermost line of this package or DeepSpeed."""
    torch.cuda.set_sync_debug_mode("warn")
    places: list[str] = []

    def note(message: Any, *_: Any, **__: Any) -> None:
        frames = [(_PACKAGE_FILE.fullmatch(frame.filename), frame.lineno) for frame in traceback.extract_stack()]
        lines = [f"{file[1]}:{number}" for file, number in frames if file]
        places.append(lines[-1] if lines else str(message)[:80])

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            with mock.patch("warnings.showwarning", note):
                work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{place} x{places.count(place)}" for place in dict.fromkeys(places)]
