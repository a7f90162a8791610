"""Prove and measure the contrastive loss on one GPU, part by part, the most valuable first.

    python bench/gpu_loss.py --out FILE                           # all parts, about 90 seconds
    python bench/gpu_loss.py --out FILE --parts speed             # some of them
    python bench/gpu_loss.py --out FILE --device cpu --small      # small shapes in Triton's interpreter

The JSON is written after every part. A part that fails is recorded with its error and the others go ahead; the exit
status is then 1.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

if "cpu" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
import torch.nn.functional as F
from torch import Tensor

from bali_ds.losses.contrastive import contrastive_loss, triton_computation
from bali_ds.losses.contrastive import triton_negatives as kernels
from bali_ds.losses.contrastive.triton_negatives import Blocks
from bali_ds.losses.contrastive.workspace import Workspace

sys.path.insert(0, str(Path(__file__).parents[1]))  # the dense losses of the tests are the oracle

from tests.losses.dense_contrastive import dense_loss, views

KINDS = ("ntxent", "clip", "supcon", "marginal", "multi_similarity", "sigmoid")
BF16, FLOAT64 = torch.bfloat16, torch.float64
CONFIGURATIONS = (
    Blocks(128, 128, 64, 8, 3),
    Blocks(128, 128, 64, 8, 3, 128),
    Blocks(128, 128, 64, 8, 4, 128),
    Blocks(128, 128, 64, 4, 3),
    Blocks(128, 128, 32, 8, 4, 128),
    Blocks(128, 256, 64, 8, 3),
    Blocks(128, 256, 64, 8, 4),
    Blocks(256, 128, 64, 8, 3),
    Blocks(64, 256, 64, 4, 3),
    Blocks(64, 128, 64, 4, 4),
)
Figures = dict[str, Any]
DEVICE, SMALL = torch.device("cuda"), False


def main() -> int:
    """Run the parts, print and write their figures; return 1 if one failed."""
    global DEVICE, SMALL
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="shapes that take seconds on a CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    DEVICE, SMALL = torch.device(options.device), options.small
    versions = {"torch": torch.__version__, "triton": kernels.triton.__version__}
    results: Figures = {"device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu", **versions}
    for name in options.parts:
        begin = time.perf_counter()
        try:
            figures = {"passed": True, **PARTS[name]()}
        except Exception as error:
            traceback.print_exc()
            figures = {"passed": False, "error": f"{type(error).__name__}: {error}"[:2000]}
        results[name] = figures | {"part_seconds": round(time.perf_counter() - begin, 2)}
        options.out.write_text(json.dumps(results, indent=1))
        print(f"{name:<12}{json.dumps(results[name])}", flush=True)
    return int(not all(part["passed"] for part in results.values() if isinstance(part, dict)))


def compile_kernels() -> Figures:
    """Compile the kernels of all configurations, each in a process of its own, into Triton's cache."""
    if DEVICE.type == "cpu":
        return {}
    tasks = [(kind, dtype) for kind in KINDS for dtype in (BF16, torch.float32)]
    with ProcessPoolExecutor(14, multiprocessing.get_context("spawn")) as pool:
        seconds = list(pool.map(_compile, [*tasks, *CONFIGURATIONS]))
    return {"seconds": seconds}


def _compile(task: Blocks | tuple[str, torch.dtype]) -> float:
    """Compile the kernels that read all pairs, by their configuration, or all kernels of a kind and dtype."""
    begin = time.perf_counter()
    if isinstance(task, Blocks):
        kernels.SUM_BLOCKS[BF16] = kernels.DERIVATIVE_BLOCKS[BF16] = task
        _pair_kernels(256, 256, 1)
    else:
        queries, keys, ids = _views(256, 768)
        queries, keys = (each.detach().to(task[1]).requires_grad_() for each in (queries, keys))
        _loss(queries, keys, torch.tensor(14.0, device="cuda"), ids, ids, task[0]).backward()
    torch.cuda.synchronize()
    return round(time.perf_counter() - begin, 1)


def _pair_kernels(rows: int, columns: int, repeats: int) -> list[float]:
    """Return the milliseconds of sums and of derivatives over all pairs."""
    queries, keys, _ = _views(columns, 64 if SMALL else 768)
    left, right = queries.detach()[:rows], keys.detach()
    begins = torch.arange(rows, dtype=torch.int32, device=DEVICE)
    ends = begins + 1
    scale, workspace = torch.tensor(14.0, dtype=FLOAT64, device=DEVICE), Workspace(DEVICE)
    by_row, by_column = (torch.full((count,), -torch.inf, dtype=FLOAT64, device=DEVICE) for count in (rows, columns))
    factors = torch.full((rows,), 30.0, device=DEVICE), torch.full((columns,), 30.0, device=DEVICE)

    def sums() -> None:
        kernels.add_negative_sums(left, right, begins, ends, scale, 0, by_row, by_column, 0, workspace)

    def derivatives() -> None:
        kernels.negative_derivatives(
            left, right, begins, ends, factors, scale, scale, 0, kernels.EXPONENTIAL, workspace, both=True
        )

    return [_seconds(sums, repeats), _seconds(derivatives, repeats)]


def _loss(queries: Tensor, keys: Tensor, scale: Tensor, query_ids: Tensor, key_ids: Tensor, kind: str) -> Tensor:
    return contrastive_loss(
        queries, keys, scale, query_concept_ids=query_ids, key_concept_ids=key_ids, kind=kind, kernels="triton"
    )


def _views(pairs: int, width: int, *, zipf: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(pairs)
    if zipf:
        ids = torch.multinomial(1 / torch.arange(1.0, 300_001), pairs, replacement=True, generator=generator)
    torch.manual_seed(1)
    features = [F.normalize(torch.randn(pairs, width, device=DEVICE)).to(BF16).requires_grad_() for _ in range(2)]
    return features[0], features[1], ids.to(DEVICE)


def speed() -> Figures:
    """Forward and backward: wall time, time of kernels, their number, peak memory, and the same of dense losses."""
    rows = []
    width, sizes = (64, (128,)) if SMALL else (768, (1_280, 4_096, 16_384, 65_536))
    for pairs in sizes:
        for zipf in (False, True):
            queries, keys, ids = _views(pairs, width, zipf=zipf)
            scale = torch.tensor(14.0, device=DEVICE)
            product = _seconds(lambda: queries.detach() @ keys.detach().T)  # noqa: B023
            row: Figures = {"pairs": pairs, "zipf": zipf, "product_ms": product}
            losses: dict[str, Callable[[], Tensor]] = {
                kind: lambda kind=kind: _loss(queries, keys, scale, ids, ids, kind)  # type: ignore[misc] # noqa: B023
                for kind in ("clip", "ntxent")
            }
            if not zipf and (DEVICE.type == "cpu" or 16 * pairs**2 < 0.8 * torch.cuda.mem_get_info()[0]):
                losses["dense"] = lambda: _dense_clip(queries, keys, scale)  # noqa: B023
                if (peer := _open_clip()) is not None:
                    losses["open_clip"] = lambda: peer(queries, keys, scale)  # noqa: B023
            for name, loss in losses.items():
                row[name] = _measure(loss)
            row["clip over four products"] = row["clip"]["ms"] / (4 * product)
            rows.append(row)
            print(f"  {row}", flush=True)
    return {"rows": rows}


def _measure(loss: Callable[[], Tensor]) -> Figures:
    def work() -> None:
        loss().backward()

    if DEVICE.type == "cpu":
        return {"ms": _seconds(work)}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    figures: Figures = {"ms": _seconds(work, 9)}
    figures["peak_mib"] = (torch.cuda.max_memory_allocated() - before) >> 20
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(10):
        work()
    figures["host_ms"] = (time.perf_counter() - begin) * 100
    torch.cuda.synchronize()
    figures["mean_of_ten_ms"] = (time.perf_counter() - begin) * 100
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda each: -each.device_time_total)
    figures["kernels"] = sum(each.count for each in events if not each.key.startswith("cuda"))
    figures["kernel_ms"] = sum(each.device_time_total for each in events) / 1e3
    figures["longest"] = {each.key[:50]: [each.count, round(each.device_time_total / 1e3, 3)] for each in events[:9]}
    return figures


def _seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """Return the median milliseconds of some work, after a warm-up; the device's own clock on a GPU."""
    if DEVICE.type == "cpu":
        begin = time.perf_counter()
        work()
        return (time.perf_counter() - begin) * 1e3
    work()
    times = []
    for _ in range(repeats):
        begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin_event.record()
        work()
        end_event.record()
        torch.cuda.synchronize()
        times.append(begin_event.elapsed_time(end_event))
    return statistics.median(times)


def _dense_clip(queries: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    logits = scale * queries @ keys.T
    places = torch.arange(len(queries), device=queries.device)
    return (F.cross_entropy(logits, places) + F.cross_entropy(logits.T, places)) / 2


def _open_clip() -> Callable[..., Tensor] | None:
    """Return open_clip's loss, from its own file: the rest of the package asks for image libraries."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        return None
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(package.origin).with_name("loss.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss: Callable[..., Tensor] = module.ClipLoss()
    return loss


def oracle() -> Figures:
    """All kinds against dense float64, with the gradients by scale and bias."""
    errors = {}
    for kind in KINDS[1:2] if SMALL else KINDS:
        for dtype, scale in ((torch.float32, 20.0), (torch.float32, 100.0), (BF16, 20.0)):
            queries, keys, *ids = views(7, 293, 331, 72 if SMALL else 768, concepts=150, zipf=True)
            units = [F.normalize(each.double()).to(dtype) for each in (queries, keys)]
            leaves = [*units, torch.tensor(scale), torch.tensor(-3.0)]
            exact = [each.double().requires_grad_() for each in leaves]
            dense_loss(*exact[:3], *ids, kind, bias=exact[3], normalize=dtype is torch.float32).backward()
            want = dense_loss(*exact[:3], *ids, kind, bias=exact[3], normalize=dtype is torch.float32)
            inputs = [each.to(DEVICE).requires_grad_() for each in leaves]
            loss = contrastive_loss(
                *inputs[:3], query_concept_ids=ids[0].to(DEVICE), key_concept_ids=ids[1].to(DEVICE), kind=kind,
                logit_bias=inputs[3], kernels="triton",
            )  # fmt: skip
            loss.backward()
            row = {"loss": abs(loss.item() / want.item() - 1)}
            for name, mine, true in zip(("queries", "keys", "scale", "bias"), inputs, exact, strict=True):
                wanted = torch.zeros_like(true) if true.grad is None else true.grad
                if name in ("queries", "keys") and dtype is BF16:  # the loss normalizes again, the dense form does not
                    wanted = wanted - (wanted * true.detach()).sum(1, keepdim=True) * true.detach()
                assert mine.grad is not None
                row[name] = float((mine.grad.double().cpu() - wanted).norm() / wanted.norm().clamp(min=1e-12))
            errors[f"{kind} {dtype} {scale:.0f}"] = row
    allowed = {"torch.float32 20": 1e-4, "torch.float32 100": 1e-3, "torch.bfloat16 20": 2**-6}
    worst = {name: max(each for each in row.values()) for name, row in errors.items()}
    failed = {name: value for name, value in worst.items() if not value < allowed[name.split(" ", 1)[1]]}
    return {"passed": not failed, "errors": errors}


def synchronizations() -> Figures:
    """Every kind under the debug mode in which waiting for the device is an error; results that repeat bit for bit."""
    if DEVICE.type == "cpu":
        return {}
    queries, keys, ids = _views(1280, 768, zipf=True)
    scale = torch.tensor(14.0, device=DEVICE, requires_grad=True)
    for kind in KINDS:
        gradients = []
        for again in (False, True):
            queries.grad = keys.grad = scale.grad = None
            torch.cuda.set_sync_debug_mode("error" if again else "default")
            try:
                _loss(queries, keys, scale, ids, ids, kind).backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            gradients.append((queries.grad, keys.grad, scale.grad))
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True)), kind
    return {}


def sweep() -> Figures:
    """Products per second of the two kernels over all pairs, by configuration; the loss by size of workspace."""
    rows, columns = (256, 256) if SMALL else (8_192, 65_536)
    queries, keys, ids = _views(columns, 64 if SMALL else 768)
    scale = torch.tensor(14.0, device=DEVICE)
    operations = 2 * rows * columns * queries.shape[1] / 1e9
    results: Figures = {"cublas": operations / _seconds(lambda: queries.detach()[:rows] @ keys.detach().T)}
    chosen = kernels.SUM_BLOCKS[BF16], kernels.DERIVATIVE_BLOCKS[BF16]
    for blocks in CONFIGURATIONS[:1] if SMALL else CONFIGURATIONS:
        kernels.SUM_BLOCKS[BF16] = kernels.DERIVATIVE_BLOCKS[BF16] = blocks
        try:
            results[str(tuple(blocks))] = [round(operations / each, 1) for each in _pair_kernels(rows, columns, 5)]
        except Exception as error:
            results[str(tuple(blocks))] = f"{type(error).__name__}: {error}"[:200]
    kernels.SUM_BLOCKS[BF16], kernels.DERIVATIVE_BLOCKS[BF16] = chosen
    default = triton_computation.WORKSPACE_BYTES
    for mebibytes in (1024,) if SMALL else (256, 512, 1024, 2048, 4096):
        triton_computation.WORKSPACE_BYTES = mebibytes << 20
        for kind in ("clip", "ntxent"):
            milliseconds = _seconds(lambda: _loss(queries, keys, scale, ids, ids, kind).backward(), 3)  # noqa: B023
            results[f"{kind}, workspace of {mebibytes} MiB"] = milliseconds
    triton_computation.WORKSPACE_BYTES = default
    return {"teraflops of sums and derivatives": results}


def large_offsets() -> Figures:
    """Features and derivatives of more than 2**31 values, against float64."""
    if DEVICE.type == "cpu":
        return {}
    torch.manual_seed(2)
    scale, workspace = torch.tensor(14.0, dtype=FLOAT64, device=DEVICE), Workspace(DEVICE)
    many = torch.randn(2_900_001, 768, device=DEVICE, dtype=BF16).mul_(768**-0.5)
    few = many[:77].clone()
    empty = torch.zeros(len(many), dtype=torch.int32, device=DEVICE)
    sums = [torch.full((len(each),), -torch.inf, dtype=FLOAT64, device=DEVICE) for each in (few, many)]
    kernels.add_negative_sums(few, many, empty[:77], empty[:77], scale, 0, sums[0], sums[1], 0, workspace)
    last = (few.double() @ many[-1000:].double().T * scale).logsumexp(0)
    figures = {"columns": float((sums[1][-1000:] - last).abs().max())}
    sums = [torch.full((len(each),), -torch.inf, dtype=FLOAT64, device=DEVICE) for each in (many, few)]
    kernels.add_negative_sums(many, few, empty, empty, scale, 0, sums[0], sums[1], 0, workspace)
    figures["rows"] = float((sums[0][-1000:] - last).abs().max())
    rows, columns = many[:33_001], many[:66_001]
    factors = torch.full((len(columns),), 20.0, device=DEVICE)
    derivatives, _ = kernels.negative_derivatives(
        rows, columns, empty, empty, (factors[: len(rows)], factors), scale, scale, 0, kernels.EXPONENTIAL, workspace,
        both=True,
    )  # fmt: skip
    want = 2 * torch.exp(rows[-5:].double() @ columns.double().T * scale) / 2**20
    figures["derivatives"] = float((derivatives[-5:].double() - want).norm() / want.norm())
    assert figures["columns"] < 1e-4, figures
    assert figures["rows"] < 1e-4, figures
    assert figures["derivatives"] < 2**-8, figures
    return figures


PARTS: dict[str, Callable[[], Figures]] = {
    "compile": compile_kernels,
    "speed": speed,
    "oracle": oracle,
    "synchronizations": synchronizations,
    "sweep": sweep,
    "large_offsets": large_offsets,
}


if __name__ == "__main__":
    sys.exit(main())
