"""Parts of gpu.py for the contrastive loss: is it exact, how fast is it, which block shapes are the fastest."""

import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bali_ds.losses.contrastive import contrastive_loss
from bench.gpu_bench import Bench, Figures, profiled
from tests.losses.dense_contrastive import dense_loss, views

KINDS = ("ntxent", "clip", "supcon", "marginal", "multi_similarity", "sigmoid")
BF16, FLOAT64 = torch.bfloat16, torch.float64
BLOCKS = (  # rows, columns, depth, warps, stages, registers: the fields of `Blocks`
    (128, 128, 64, 4, 3, None),
    (128, 128, 64, 4, 4, None),
    (128, 128, 64, 8, 3, None),
    (128, 128, 64, 8, 3, 128),
    (128, 128, 32, 4, 4, None),
    (64, 128, 64, 4, 3, None),
    (64, 128, 64, 4, 4, None),
)


def loss_oracle(bench: Bench) -> Figures:
    """All kinds against dense float64, with the gradients by scale and bias; bits that repeat without waiting."""
    compile_kernels(bench.device)
    errors = loss_errors(bench)
    allowed = {"torch.float32 20": 1e-4, "torch.float32 100": 1e-3, "torch.bfloat16 20": 2**-6}
    for name, row in errors.items():
        assert max(row.values()) < allowed[name.split(" ", 1)[1]], (name, row)
    _assert_repeatable(bench)
    return {"errors": errors} | (_large_offsets() if bench.device == "cuda" else {})


@cache
def compile_kernels(device: str) -> float:
    """Compile the kernels of all kinds on a GPU, each in a process of its own, into Triton's cache; return seconds."""
    return _compile_all([(kind, dtype) for kind in KINDS for dtype in (BF16, torch.float32)]) if device == "cuda" else 0


def _compile_all(tasks: list[Any]) -> float:
    begin = time.perf_counter()
    with ProcessPoolExecutor(14, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile, tasks))
    return time.perf_counter() - begin


def _compile(task: tuple[Any, ...]) -> None:
    """Compile all kernels of a kind and dtype, or those that read all pairs in some block shape."""
    if len(task) == 2:
        kind, dtype = task
        queries, keys, ids = _views(256, 768, "cuda")
        queries, keys = (each.detach().to(dtype).requires_grad_() for each in (queries, keys))
        _loss(queries, keys, torch.tensor(14.0, device="cuda"), ids, ids, kind).backward()
    else:
        for work in _pair_kernels(256, 256, task):
            work()
    torch.cuda.synchronize()


def _pair_kernels(rows: int, columns: int, shape: tuple[Any, ...]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return two functions on a GPU: sums and derivatives over all pairs in some block shape."""
    from bali_ds.losses.contrastive import triton_negatives as kernels
    from bali_ds.losses.contrastive.workspace import Workspace

    kernels.SUM_BLOCKS[BF16] = kernels.DERIVATIVE_BLOCKS[BF16] = kernels.Blocks(*shape)
    queries, keys, _ = _views(columns, 768, "cuda")
    left, right = queries.detach()[:rows], keys.detach()
    begins = torch.arange(rows, dtype=torch.int32, device="cuda")
    ends = begins + 1
    scale, workspace = torch.tensor(14.0, dtype=FLOAT64, device="cuda"), Workspace(torch.device("cuda"))
    by_row, by_column = (torch.full((count,), -torch.inf, dtype=FLOAT64, device="cuda") for count in (rows, columns))
    factors = torch.full((rows,), -30.0, device="cuda"), torch.full((columns,), -30.0, device="cuda")

    def sums() -> None:
        kernels.add_negative_sums(left, right, begins, ends, scale, 0, by_row, by_column, workspace)

    def derivatives() -> None:
        kernels.negative_derivatives(
            left, right, begins, ends, factors, scale, scale, 0, kernels.EXPONENTIAL, workspace, both=True
        )

    return sums, derivatives


def _loss(queries: Tensor, keys: Tensor, scale: Tensor, query_ids: Tensor, key_ids: Tensor, kind: str) -> Tensor:
    return contrastive_loss(queries, keys, scale, query_concept_ids=query_ids, key_concept_ids=key_ids, kind=kind)


def _views(pairs: int, width: int, device: str, *, zipf: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(pairs)
    if zipf:
        ids = torch.multinomial(1 / torch.arange(1.0, 300_001), pairs, replacement=True, generator=generator)
    torch.manual_seed(1)
    features = [F.normalize(torch.randn(pairs, width, device=device)).to(BF16).requires_grad_() for _ in range(2)]
    return features[0], features[1], ids.to(device)


def loss_speed(bench: Bench) -> Figures:
    """Forward and backward: wall time, time of kernels, their number, peak memory, and the same of dense losses."""
    figures: Figures = {"compile_seconds": compile_kernels(bench.device), "rows": []}
    width, sizes = (64, (256,)) if bench.small else (768, (1_280, 4_096, 16_384, 65_536))
    for pairs in sizes:
        for zipf in (False, True):
            queries, keys, ids = _views(pairs, width, bench.device, zipf=zipf)
            scale = torch.tensor(14.0, device=bench.device)
            product = bench.seconds(lambda: queries.detach() @ keys.detach().T)  # noqa: B023
            row: Figures = {"pairs": pairs, "zipf": zipf, "product_seconds": product}
            losses: dict[str, Callable[[], Tensor]] = {
                kind: lambda kind=kind: _loss(queries, keys, scale, ids, ids, kind)  # type: ignore[misc] # noqa: B023
                for kind in ("clip", "ntxent")
            }
            # four matrices of all similarities in float32
            fits = bench.device == "cpu" or 16 * pairs**2 < 0.8 * torch.cuda.mem_get_info()[0]
            if fits and not zipf:
                losses["dense clip"] = lambda: _dense_clip(queries, keys, scale)  # noqa: B023
                if (open_clip := _open_clip()) is not None:
                    losses["open_clip"] = lambda: open_clip(queries, keys, scale)  # noqa: B023
            for name, loss in losses.items():
                row[name] = _measure(bench, loss)
            row["clip over its four products"] = row["clip"]["seconds"] / (4 * product)
            figures["rows"].append(row)
            print(f"  {row}", flush=True)
    return figures


def _measure(bench: Bench, loss: Callable[[], Tensor]) -> Figures:
    def work() -> None:
        loss().backward()

    if bench.device == "cpu":
        return {"seconds": bench.seconds(work)}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    figures: Figures = {"seconds": bench.seconds(work, 9)}
    figures["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(10):
        work()
    figures["host_seconds"] = (time.perf_counter() - begin) / 10
    return figures | profiled(work, longest=9)


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


def loss_errors(bench: Bench) -> dict[str, dict[str, float]]:
    """Return relative errors of the loss and of each gradient, by kind, dtype and scale."""
    errors = {}
    for kind in KINDS:
        for dtype, scale in ((torch.float32, 20.0), (torch.float32, 100.0), (BF16, 20.0)):
            queries, keys, *ids = views(7, 293, 331, 72 if bench.small else 768, concepts=150, zipf=True)
            units = [F.normalize(each.double()).to(dtype) for each in (queries, keys)]
            leaves = [*units, torch.tensor(scale), torch.tensor(-3.0)]
            exact = [each.double().requires_grad_() for each in leaves]
            want = dense_loss(*exact[:3], *ids, kind, bias=exact[3], normalize=dtype is torch.float32)
            want.backward()
            inputs = [each.to(bench.device).requires_grad_() for each in leaves]
            loss = contrastive_loss(
                *inputs[:3], query_concept_ids=ids[0].to(bench.device), key_concept_ids=ids[1].to(bench.device),
                kind=kind, logit_bias=inputs[3], communication_dtype=dtype,
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
    return errors


def _assert_repeatable(bench: Bench) -> None:
    """Evaluate every kind twice, the second time on a GPU in the mode in which waiting for the device is an error."""
    queries, keys, ids = _views(256 if bench.small else 1280, 64 if bench.small else 768, bench.device, zipf=True)
    scale = torch.tensor(14.0, device=bench.device, requires_grad=True)
    for kind in KINDS:
        gradients = []
        for again in (False, True):
            queries.grad = keys.grad = scale.grad = None
            if bench.device == "cuda":
                torch.cuda.set_sync_debug_mode("error" if again else "default")
            try:
                _loss(queries, keys, scale, ids, ids, kind).backward()
            finally:
                if bench.device == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            gradients.append((queries.grad, keys.grad, scale.grad))
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True)), kind


def _large_offsets() -> Figures:
    """Return errors of features and derivatives of more than 2**31 values on a GPU, against float64."""
    from bali_ds.losses.contrastive import triton_negatives as kernels
    from bali_ds.losses.contrastive.workspace import Workspace

    torch.manual_seed(2)
    scale, workspace = torch.tensor(14.0, dtype=FLOAT64, device="cuda"), Workspace(torch.device("cuda"))
    many = torch.randn(2_900_001, 768, device="cuda", dtype=BF16).mul_(768**-0.5)
    few = many[:77].clone()
    empty = torch.zeros(len(many), dtype=torch.int32, device="cuda")
    sums = [torch.full((len(each),), -torch.inf, dtype=FLOAT64, device="cuda") for each in (few, many)]
    kernels.add_negative_sums(few, many, empty[:77], empty[:77], scale, 0, sums[0], sums[1], workspace)
    last = (few.double() @ many[-1000:].double().T * scale).logsumexp(0)
    figures = {"columns": float((sums[1][-1000:] - last).abs().max())}
    sums = [torch.full((len(each),), -torch.inf, dtype=FLOAT64, device="cuda") for each in (many, few)]
    kernels.add_negative_sums(many, few, empty, empty, scale, 0, sums[0], sums[1], workspace)
    figures["rows"] = float((sums[0][-1000:] - last).abs().max())
    rows, columns = many[:33_001], many[:66_001]
    factors = torch.full((len(columns),), -20.0, device="cuda")
    derivatives, _ = kernels.negative_derivatives(
        rows, columns, empty, empty, (factors[: len(rows)], factors), scale, scale, 0, kernels.EXPONENTIAL, workspace,
        both=True,
    )  # fmt: skip
    want = 2 * torch.exp(rows[-5:].double() @ columns.double().T * scale) / 2**20
    figures["derivatives"] = float((derivatives[-5:].double() - want).norm() / want.norm())
    assert max(figures["columns"], figures["rows"]) < 1e-4, figures
    assert figures["derivatives"] < 2**-8, figures
    return figures


def loss_blocks(bench: Bench) -> Figures:
    """Operations per second of the two kernels over all pairs in several block shapes, and those of cuBLAS."""
    if bench.device == "cpu":
        return {}
    from bali_ds.losses.contrastive import triton_negatives as kernels

    rows, columns = 8_192, 65_536
    _compile_all(list(BLOCKS))
    queries, keys, _ = _views(columns, 768, "cuda")
    operations = 2 * rows * columns * queries.shape[1] / 1e12
    figures: Figures = {"cublas": operations / bench.seconds(lambda: queries.detach()[:rows] @ keys.detach().T)}
    chosen = kernels.SUM_BLOCKS[BF16], kernels.DERIVATIVE_BLOCKS[BF16]
    for shape in BLOCKS:
        works = _pair_kernels(rows, columns, shape)
        figures[str(shape)] = [round(operations / bench.seconds(work), 1) for work in works]
    kernels.SUM_BLOCKS[BF16], kernels.DERIVATIVE_BLOCKS[BF16] = chosen
    return {"teraflops of sums and derivatives": figures}
