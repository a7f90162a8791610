"""The Triton kernels against plain float64 tiles, on a GPU or in the interpreter; run by test_triton_tiles.py."""

import pytest
import torch

from bali_ds.losses.contrastive import triton_tiles as kernels
from tests.losses import dense_contrastive as dense
from tests.losses.rounding import UNIT, rounding
from tests.losses.test_contrastive import assert_close, expected, obtained

DEVICE = torch.device("cpu" if kernels.triton.knobs.runtime.interpret else "cuda")
SCALE, SHIFT = 9.0, 2.0


def plain(rows, columns, row_ids, column_ids):
    tile = torch.exp(rows.double() @ columns.double().T * SCALE - SHIFT)
    return tile.masked_fill(row_ids[:, None] == column_ids, 0.0)


def assert_alike(got, want, allowed):
    got, want = got.cpu().double(), want.cpu()
    assert (got - want).norm() <= allowed * want.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "n", "d"), [(1, 1, 1), (64, 64, 32), (70, 130, 33), (65, 3, 1024)])
def test_sums_and_derivatives(m, n, d, dtype):
    queries, keys, *ids = dense.views(m, m, n, d, concepts=20)
    units = (torch.nn.functional.normalize(each, dim=1).to(dtype) for each in (queries, keys))
    operands = [each.to(DEVICE) for each in (*units, *ids)]
    # Tensor cores may truncate when they accumulate, by a unit of a cosine for each of its d terms.
    allowed = rounding(SCALE) + SCALE * d * UNIT * (DEVICE.type == "cuda")
    want = plain(*operands)
    by_row, by_column = kernels.tile_sums(*operands, SCALE, SHIFT)
    assert_alike(by_row, want.sum(1), allowed)
    assert_alike(by_column, want.sum(0), allowed)
    factors = torch.rand(m, device=DEVICE), torch.rand(n, device=DEVICE)
    got = kernels.tile_derivatives(*operands, *factors, SCALE, SHIFT)
    assert_alike(got, want * (factors[0][:, None] + factors[1]), allowed)


@pytest.mark.parametrize("kind", ["ntxent", "clip"])
def test_the_loss_on_kernels(kind):
    data = dense.views(3, 80, 60, 20, concepts=50)
    got = obtained(kind, [each.to(DEVICE) for each in data], 14.0, tile_size=70, kernels="triton")
    assert_close([each.cpu() for each in got], expected(kind, data, 14.0), rounding(14.0))
