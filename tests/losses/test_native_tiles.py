"""The native kernels against plain float64 tiles, and against themselves on other numbers of threads."""

import numpy as np
import pytest
import torch

from bali_ds.losses.contrastive.native_tiles import NativeNegatives, _library, available
from bali_ds.losses.contrastive.sorted_views import BlockPair, ViewBlock
from bali_ds.losses.contrastive.tiles import Tiles
from tests.losses import dense_contrastive as dense
from tests.losses.rounding import rounding
from tests.losses.test_contrastive import assert_close, expected, obtained

pytestmark = pytest.mark.skipif(not available(), reason="built without a C compiler, or no AVX-512 here")

SHAPES = [(1, 1, 1), (64, 64, 32), (33, 7, 40), (70, 130, 33), (129, 300, 768), (300, 129, 129)]
SCALE, SHIFT = 9.0, 2.0
CPU = torch.device("cpu")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def block(side, seed, count, width, start=0, dtype=torch.float32):
    generator = np.random.default_rng(seed)
    features = torch.from_numpy(generator.standard_normal((count, width)).astype(np.float32))
    features = torch.nn.functional.normalize(features, dim=1).to(dtype)
    ids = torch.from_numpy(np.sort(generator.integers(0, 50, count)))
    return ViewBlock(side, ids, start, features)


def native(rows, columns, symmetric, size=64):
    """Return sums of rows and columns and both gradients, with random factors."""
    tiles = Tiles(SCALE, SHIFT, size, torch.float32, torch.float32, CPU)
    negatives = NativeNegatives(tiles)
    factors = [torch.rand(1000, generator=torch.Generator().manual_seed(side)) for side in (0, 1)]
    sums = [torch.zeros(len(each), dtype=torch.float64) for each in (rows, columns)]
    slopes = [torch.zeros(each.features.shape) for each in (rows, columns)]
    sums, slopes = ([each[0], each[0]] if symmetric else each for each in (sums, slopes))
    negatives.sums(BlockPair(rows, columns, *sums, symmetric))
    negatives.factors = factors
    negatives.gradients(BlockPair(rows, columns, *slopes, symmetric))
    return *sums, *slopes


def plain(rows, columns):
    factors = [torch.rand(1000, generator=torch.Generator().manual_seed(side)).double() for side in (0, 1)]
    left, right = rows.features.double(), columns.features.double()
    tile = torch.exp(SCALE * left @ right.T - SHIFT)
    tile = tile.masked_fill(rows.concept_ids[:, None] == columns.concept_ids, 0.0)
    slopes = tile * (factors[rows.side][rows.span, None] + factors[columns.side][columns.span])
    return tile.sum(1), tile.sum(0), slopes @ right, slopes.T @ left


def assert_alike(got, want):
    for mine, true in zip(got, want, strict=True):
        allowed = rounding(SCALE)
        torch.testing.assert_close(mine.double(), true, rtol=allowed, atol=allowed * float(true.abs().max()))


@pytest.mark.parametrize(("m", "n", "d"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_blocks(m, n, d, dtype):
    rows, columns = block(0, 1, m, d, start=5, dtype=dtype), block(1, 2, n, d, start=11, dtype=dtype)
    assert_alike(native(rows, columns, False), plain(rows, columns))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_with_itself(count, dtype):
    rows = block(0, 3, count, 40, dtype=dtype)
    assert_alike(native(rows, rows, True), plain(rows, rows))


@pytest.mark.parametrize("number", [2, 3, 7])
def test_threads_change_nothing(number, threads):
    rows, columns = block(0, 1, 150, 96), block(1, 2, 333, 96)
    pairs = ((rows, columns, False), (rows, rows, True))
    threads(1)
    alone = [native(*pair) for pair in pairs]
    threads(number)
    for want, pair in zip(alone, pairs, strict=True):
        assert all(torch.equal(*each) for each in zip(native(*pair), want, strict=True))


def test_views_on_another_device_are_refused():
    with pytest.raises(ValueError, match="'native' computes on CPUs, but the views are on cuda"):
        NativeNegatives(Tiles(1.0, 0.0, 64, torch.float32, torch.float32, torch.device("cuda")))


@pytest.mark.parametrize(("capability", "there"), [("default", False), ("avx2", False), ("avx512", True)])
def test_restricting_torch_to_older_instructions_disables_them(capability, there, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
    assert (_library.__wrapped__() is not None) == there


def test_exponentials_over_their_whole_range():
    """One view of width 1 against many whose cosines are 1 and -1: shifts then choose the exponent."""
    ids = torch.arange(2)
    rows, columns = (ViewBlock(side, ids + side * 2, 0, torch.tensor([[1.0], [-1.0]])) for side in (0, 1))
    for exponent in (*np.linspace(-86.0, 87.0, 60), -103.9, -500.0):
        negatives = NativeNegatives(Tiles(0.0, -exponent, 64, torch.float32, torch.float32, CPU))
        sums = torch.zeros(2, dtype=torch.float64)
        negatives.sums(BlockPair(rows, columns, sums, None))
        want = 2 * np.exp(np.float64(np.float32(exponent)))
        assert sums.tolist() == pytest.approx([want, want], rel=3e-7, abs=1e-44)


@pytest.mark.parametrize("kind", ["ntxent", "clip", "supcon", "marginal"])
@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_loss_on_either_kind_of_tiles(kind, kernels, dtype):
    data = dense.views(3, 180, 170, 64, concepts=90)
    if dtype is not None:  # features of 1/8 and -1/8 at unit length, which bfloat16 represents exactly
        data = (*(each.sign() for each in data[:2]), *data[2:])
    got = obtained(kind, data, 14.0, tile_size=64, kernels=kernels, communication_dtype=dtype)
    assert_close(got, expected(kind, data, 14.0), rounding(14.0))
