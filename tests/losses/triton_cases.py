"""The contrastive loss on Triton kernels, on a GPU or in the interpreter; run by test_triton_kernels.py.

Derivatives by the similarities of bfloat16 features are rounded to bfloat16 before they are multiplied with features,
so gradients are compared with 2**-8. Sums and the loss are not rounded.
"""

import math
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime.interpreter import GridExecutor

from bali_ds.losses.contrastive import contrastive_loss
from bali_ds.losses.contrastive import triton_negatives as kernels
from bali_ds.losses.contrastive.sorted_views import gather_layout
from bali_ds.losses.contrastive.triton_conversions import INTERPRETED
from bali_ds.losses.contrastive.triton_views import sort_views
from bali_ds.losses.contrastive.workspace import Workspace
from bench.inputs.fake_ranks import run_fake_ranks
from tests.losses import dense_contrastive as dense
from tests.losses.rank_cases import BIAS, SCALE, Case, start
from tests.losses.rounding import UNIT, rounding, scale_condition
from tests.losses.test_contrastive import KINDS, assert_close, expected, expected_of_rounded, obtained
from tests.losses.test_ranks import whole

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
ROUNDED = 2.0**-8
WAITING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "is_nonzero", "bincount", "repeat_interleave")


def allowed(scale, width):
    """Return the error of float32: tensor cores may truncate, by a unit of a cosine for each term of its sum."""
    return rounding(scale) + scale * width * UNIT * (DEVICE.type == "cuda")


def on_device(kind, data, scale, bias=0.0, **options):
    got = obtained(kind, [each.to(DEVICE) for each in data], scale, bias, kernels="triton", **options)
    return [each.cpu() for each in got]


def assert_alike(got, want, tolerance):
    got, want = got.cpu().double(), want.cpu()
    assert (got - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [9.0, 60.0])  # with one exponential for a row and a column, and with two
@pytest.mark.parametrize(
    ("m", "n", "d"),
    [(1, 1, 64), (130, 140, 64), (65, 3, 832), pytest.param(130, 270, 64, marks=pytest.mark.slow)],
)
def test_sums_and_derivatives_of_blocks(m, n, d, scale, dtype):
    """Columns 2 to 4 have the concept of every second row; the first column is number 7."""
    factor, first = torch.tensor(scale, dtype=torch.float64, device=DEVICE), 7
    queries, keys, *_ = dense.views(m, m, n, d, concepts=20)
    rows, columns = (torch.nn.functional.normalize(each, dim=1).to(DEVICE, dtype) for each in (queries, keys))
    begins = torch.full((m,), first + 2, dtype=torch.int32, device=DEVICE)
    ends = begins + 3 * (torch.arange(m, device=DEVICE, dtype=torch.int32) % 2)
    number = first + torch.arange(n, device=DEVICE)
    same = (number >= begins[:, None]) & (number < ends[:, None])
    logits = rows.double() @ columns.double().T * scale
    by_row, by_column = (torch.full((size,), -math.inf, dtype=torch.float64, device=DEVICE) for size in (m, n))
    workspace = Workspace(DEVICE)
    kernels.add_negative_sums(rows, columns, begins, ends, factor, first, by_row, by_column, workspace)
    negatives = logits.masked_fill(same, -math.inf)
    assert_alike(by_row.exp(), negatives.logsumexp(1).exp(), allowed(scale, d))
    assert_alike(by_column.exp(), negatives.logsumexp(0).exp(), allowed(scale, d))
    factors = [-torch.rand(size, device=DEVICE) - scale for size in (m, n)]
    got, _ = kernels.negative_derivatives(
        rows, columns, begins, ends, (factors[0], factors[1]), factor, factor, first, kernels.EXPONENTIAL, workspace,
        both=True,
    )  # fmt: skip
    exponentials = [torch.exp2(logits / math.log(2) + each.double()) for each in (factors[0][:, None], factors[1])]
    assert_alike(got, sum(exponentials), allowed(scale, d) + ROUNDED * (dtype == torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (128, 140), (140, 140), pytest.param(300, 300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scale", [9.0, 60.0])
def test_views_against_themselves_are_symmetric(m, n, scale, dtype):
    """The first m columns are the rows; each view has the concept of its neighbor, too."""
    factor, numbers = torch.tensor(scale, dtype=torch.float64, device=DEVICE), torch.arange(n, device=DEVICE)
    queries, *_ = dense.views(m, n, 1, 64, concepts=20)
    columns = torch.nn.functional.normalize(queries, dim=1).to(DEVICE, dtype)
    rows, begins = columns[:m], (numbers[:m] // 2 * 2).int()
    logits = rows.double() @ columns.double().T * scale
    negatives = logits.masked_fill(numbers[:m, None] // 2 == numbers // 2, -math.inf)
    sums = torch.full((n,), -math.inf, dtype=torch.float64, device=DEVICE)
    workspace = Workspace(DEVICE)
    kernels.add_negative_sums(
        rows, columns, begins, begins + 2, factor, 0, sums[:m], sums, workspace, symmetric=True
    )  # fmt: skip
    want = torch.cat([negatives.logsumexp(1), negatives[:, m:].logsumexp(0)])
    assert_alike(sums.exp(), want.exp(), allowed(scale, 64))
    factors = -torch.rand(n, device=DEVICE) - scale
    got, _ = kernels.negative_derivatives(
        rows, columns, begins, begins + 2, (factors[:m], factors), factor, factor, 0, kernels.EXPONENTIAL, workspace,
        both=True, symmetric=True,
    )  # fmt: skip
    exponentials = [torch.exp2(logits / math.log(2) + each.double()) for each in (factors[:m, None], factors)]
    assert_alike(got, sum(exponentials), allowed(scale, 64) + ROUNDED * (dtype == torch.bfloat16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_kind_equals_the_dense_form(kind, dtype):
    data = dense.views(3, 80, 60, 20, concepts=50)
    got = on_device(kind, data, 14.0, -1.0, communication_dtype=dtype)
    if dtype is None:
        want, tolerance = expected(kind, data, 14.0, -1.0), allowed(14.0, 20)
        of_scale = tolerance * scale_condition(kind, data, 14.0, bias=-1.0)
    else:
        want, tolerance = expected_of_rounded(kind, data, 14.0, -1.0, dtype), ROUNDED
        of_scale = ROUNDED * scale_condition(kind, data, 14.0, bias=-1.0)
        assert_alike(got[0], want[0], allowed(14.0, 20))
    assert_close(got, want, tolerance, scale_tolerance=of_scale)


@pytest.mark.parametrize("kind", KINDS)
def test_heavy_tailed_duplicates_in_stripes(kind):
    data = dense.views(4, 150, 190, 24, concepts=60, zipf=True)
    got = on_device(kind, data, 20.0, tile_size=128)
    assert_close(got, expected(kind, data, 20.0), allowed(20.0, 24))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_queries", "n_keys"), [(0, 0), (5, 0), (0, 5), (1, 1), (3, 9)])
def test_few_views(kind, n_queries, n_keys):
    data = dense.views(5, n_queries, n_keys, 8, concepts=3)
    assert_close(on_device(kind, data, 10.0), expected(kind, data, 10.0), allowed(10.0, 8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("saturated", [False, True])
def test_a_high_scale(kind, saturated):
    """Saturated losses go down to 1e-20, and so do their gradients."""
    data = dense.views(3, 80, 80, 64, concepts=50, saturated=saturated)
    want, tolerance = expected(kind, data, 100.0), allowed(100.0, 64)
    of_scale = tolerance * scale_condition(kind, data, 100.0)
    assert_close(on_device(kind, data, 100.0), want, tolerance, 1e-300, of_scale)


@pytest.mark.parametrize("kind", KINDS)
def test_opposite_views_beyond_the_range_of_float32_exponentials(kind):
    queries, keys, query_ids, key_ids = dense.views(8, 40, 40, 16, concepts=1000)
    center = torch.randn(16, generator=torch.Generator().manual_seed(2))
    queries, keys = center + 0.05 * queries, center + 0.3 * keys
    queries[:2], keys[:1] = -queries[:2], -keys[:1]
    data = (queries, keys, query_ids, key_ids)
    assert_close(on_device(kind, data, 150.0), expected(kind, data, 150.0), allowed(150.0, 16))


def test_widths_that_are_no_multiple_of_a_block_and_rows_that_are_not_contiguous():
    queries, keys, *ids = dense.views(9, 20, 30, 140, concepts=30)
    data = (queries[:, 3:132], keys[:, 3:132], *ids)
    assert_close(on_device("clip", data, 20.0), expected("clip", data, 20.0), allowed(20.0, 129))


@pytest.mark.parametrize("kind", ["ntxent", "sigmoid"])
def test_results_repeat_bit_for_bit(kind):
    data = dense.views(10, 150, 90, 32, concepts=50)
    first, second = (on_device(kind, data, 20.0, communication_dtype=torch.bfloat16, tile_size=128) for _ in range(2))
    assert all(torch.equal(mine, again) for mine, again in zip(first, second, strict=True))


def test_bfloat16_views_are_held_in_bfloat16():
    queries, keys, *ids = dense.views(14, 40, 40, 16, concepts=30)
    data = (queries.bfloat16(), keys.bfloat16(), *ids)
    got = on_device("clip", data, 10.0)
    assert_alike(got[0], expected_of_rounded("clip", data, 10.0, 0.0, torch.bfloat16)[0], allowed(10.0, 16))


class _Recorder(TorchDispatchMode):
    """The names of what is launched: Triton kernels in the interpreter, and all of torch but views and allocations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if not (function.is_view or "empty" in name):
            self.names.append(name)
        return function(*args, **(kwargs or {}))

    def __enter__(self):
        launch = GridExecutor.__call__

        def record(executor, *args, **kwargs):
            self.names.append(executor.fn.__name__)
            with _disable_current_modes():
                return launch(executor, *args, **kwargs)

        self._patch = mock.patch.object(GridExecutor, "__call__", record)
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *error):
        self._patch.stop()
        return super().__exit__(*error)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_the_device(kind):
    queries, keys, *ids = (each.to(DEVICE) for each in dense.views(11, 40, 50, 16, concepts=30))
    queries.requires_grad_()
    scale = torch.tensor(10.0, device=DEVICE, requires_grad=True)

    def step():
        options = {"query_concept_ids": ids[0], "key_concept_ids": ids[1], "kind": kind, "kernels": "triton"}
        contrastive_loss(queries, keys, scale, **options).backward()

    if DEVICE.type == "cuda":
        step()  # compiles the kernels
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with _Recorder() as recorder:
        step()
    assert "sort" in recorder.names
    assert not [name for name in recorder.names if any(each in name for each in WAITING)]


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the interpreter records the launches of kernels")
@pytest.mark.parametrize(
    ("kind", "most"),
    {"clip": 60, "ntxent": 55, "supcon": 80, "marginal": 75, "sigmoid": 70, "multi_similarity": 130}.items(),
)
def test_number_of_launches(kind, most):
    """A launch costs 5 to 20 microseconds: as long as a product of 1,280 pairs."""
    queries, keys, *ids = dense.views(11, 150, 150, 64, concepts=100)
    leaves = [each.requires_grad_() for each in (queries, keys, torch.tensor(10.0), torch.tensor(-1.0))]
    with _Recorder() as recorder:
        contrastive_loss(
            *leaves[:3], query_concept_ids=ids[0], key_concept_ids=ids[1], kind=kind, logit_bias=leaves[3],
            kernels="triton",
        ).backward()  # fmt: skip
    assert any(name.endswith("_kernel") for name in recorder.names)
    assert len(recorder.names) <= most


WAYS = ("gather", "ring", "hierarchical")


def test_views_are_numbered_as_on_the_host():
    """The same layout from ids that stay on the device as from ids that are sorted on the host."""
    counts = [5, 0, 7, 4]
    ids = torch.randint(6, (sum(counts),), generator=torch.Generator().manual_seed(0)).to(DEVICE)

    def layouts(ranks):
        own = ids.split(counts)[ranks.rank]
        return sort_views(0, own, counts, ranks), gather_layout(0, own, counts, ranks)

    for ranks, (on_device, on_host) in run_fake_ranks(len(counts), layouts):
        assert on_device.offsets == on_host.offsets
        assert torch.equal(on_device.concept_ids.cpu(), on_host.concept_ids)
        assert torch.equal(on_device.positions.cpu(), on_host.positions)
        assert torch.equal(ids.cpu()[on_host.positions], on_host.concept_ids)
        own = ids.cpu().split(counts)[ranks.rank]
        assert torch.equal(own[on_host.order(ranks.rank)], own.sort().values)


RANK_CASES = [
    *(Case("clip", "three-empty", way) for way in ("gather", "ring")),
    *(Case(kind, "four", way) for kind, way in zip(KINDS, WAYS * 2, strict=True)),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return start(tmp_path_factory.mktemp("ranks"), RANK_CASES, "triton")


@pytest.mark.slow
@pytest.mark.skipif(DEVICE.type == "cuda", reason="several ranks need several GPUs")
@pytest.mark.parametrize("case", RANK_CASES, ids=lambda case: case.name)
def test_several_ranks_equal_one_process(case, results):
    want = expected(case.kind, case.data(), SCALE, BIAS)
    assert_close(whole(case, results), want, allowed(SCALE, 12))
