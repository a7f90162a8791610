"""The kernels through Triton's interpreter, which runs them on a CPU; run by test_triton.py with it switched on."""

import pytest
import torch

from bali_ds.losses.contrastive import triton_tiles as kernels
from tests.losses import dense_contrastive as dense
from tests.losses.rounding import rounding
from tests.losses.test_contrastive import assert_close, expected, obtained


def plain(rows, columns, row_ids, column_ids, scale, shift):
    tile = torch.exp(rows.double() @ columns.double().T * scale - shift)
    return tile.masked_fill(row_ids[:, None] == column_ids, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "n", "d"), [(1, 1, 1), (64, 64, 32), (70, 130, 33), (65, 3, 1024)])
def test_sums_and_derivatives(m, n, d, dtype):
    queries, keys, row_ids, column_ids = dense.views(m, m, n, d, concepts=20)
    rows, columns = (torch.nn.functional.normalize(each, dim=1).to(dtype) for each in (queries, keys))
    operands = (rows, columns, row_ids, column_ids)
    want = plain(*operands, 9.0, 2.0)
    by_row, by_column = kernels.tile_sums(*operands, 9.0, 2.0)
    torch.testing.assert_close(by_row, want.sum(1), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(by_column, want.sum(0), rtol=1e-5, atol=1e-7)
    factors = torch.rand(m), torch.rand(n)
    got = kernels.tile_derivatives(*operands, *factors, 9.0, 2.0)
    want = want * (factors[0][:, None] + factors[1])
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["ntxent", "clip"])
def test_the_loss_on_kernels(kind):
    data = dense.views(3, 80, 60, 20, concepts=50)
    got = obtained(kind, data, 14.0, tile=70, kernels="triton")
    assert_close(got, expected(kind, data, 14.0), rounding(14.0))
