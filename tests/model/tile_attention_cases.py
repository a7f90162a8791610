"""Attention in tiles against float64 attention of each sequence alone, on a GPU or in Triton's interpreter.

Run by test_tile_attention.py.
"""

import pytest
import torch
import triton
from torch.nn.functional import scaled_dot_product_attention

from bali_ds.model.attention_tiles import attend_in_tiles, tiles_of_packs
from bali_ds.model.tile_attention import tile_attention
from tests.packs import random_pack

DEVICE = torch.device("cpu" if triton.knobs.runtime.interpret else "cuda")
LENGTHS = {64: [2, 3, 5, 5, 17, 30, 3, 31, 64, 1], 128: [2, 5, 63, 128, 90, 7, 38, 1]}
HEADS = 2
FULL = 10**6
# rounding of results, of weights and of what they are multiplied with; the interpreter computes in float32
ERRORS = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}


def tiles_of(lengths):
    return tiles_of_packs([random_pack(length).to(DEVICE) for length in lengths])


def operands(count, width, dtype, seed=0):
    """Query, key and value as slices of one tensor, so that no two rows follow each other in memory."""
    draw = torch.Generator().manual_seed(seed)
    whole = torch.randn(count, 3, HEADS, width, generator=draw, dtype=torch.float64).to(dtype)
    return whole.to(DEVICE).requires_grad_()


def attend(whole, tiles, *, window=FULL, dropout=0.0, seed=5, scaling=None):
    scaling = whole.shape[-1] ** -0.5 if scaling is None else scaling
    seeds = torch.tensor([seed], device=DEVICE)
    query, key, value = whole.unbind(1)
    return tile_attention(query, key, value, tiles.starts, tiles.offsets, seeds, tiles.size, scaling, dropout, window)


def plain(whole, lengths, *, window=FULL, scaling=None):
    """Each sequence alone."""
    values = []
    for part in whole.split(lengths):
        query, key, value = part.permute(1, 2, 0, 3)
        places = torch.arange(len(part), device=whole.device)
        near = (places[:, None] - places).abs() < window
        values.append(scaled_dot_product_attention(query, key, value, attn_mask=near, scale=scaling).transpose(0, 1))
    return torch.cat(values)


def assert_alike(found, expected, allowed):
    error = (found.double() - expected).norm() / expected.norm()
    assert error <= allowed, f"off by {error:.1e}"


@pytest.mark.parametrize(
    ("size", "width", "window", "dtype"),
    [
        (64, 32, FULL, torch.float32),
        (64, 48, 5, torch.float32),
        (64, 64, FULL, torch.float16),
        (64, 32, 5, torch.bfloat16),
        (128, 48, FULL, torch.bfloat16),
        (128, 64, 40, torch.float16),
    ],
)
def test_values_and_gradients_are_those_of_each_sequence_alone(size, width, window, dtype):
    lengths = LENGTHS[size]
    whole = operands(sum(lengths), width, dtype)
    reference = whole.detach().double().requires_grad_()
    tiles = tiles_of(lengths)
    assert tiles.size == size
    found = attend(whole, tiles, window=window, scaling=0.2)
    expected = plain(reference, lengths, window=window, scaling=0.2)
    assert found.dtype == dtype
    assert_alike(found, expected, ERRORS[dtype])
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    found.backward(upstream)
    expected.backward(upstream.double())
    for by_found, by_expected in zip(whole.grad.unbind(1), reference.grad.unbind(1), strict=True):
        assert_alike(by_found, by_expected, 2 * ERRORS[dtype])


def test_gradients_that_are_not_contiguous():
    lengths = LENGTHS[64]
    whole, tiles = operands(sum(lengths), 32, torch.float32), tiles_of(lengths)
    upstream = torch.randn(32, HEADS, sum(lengths), device=DEVICE).permute(2, 1, 0)
    found = [torch.autograd.grad(attend(whole, tiles), whole, each)[0] for each in (upstream, upstream.contiguous())]
    assert torch.equal(*found)


def test_no_sequence_sees_another_of_its_tile():
    lengths = LENGTHS[64]
    whole, tiles = operands(sum(lengths), 32, torch.float32).detach(), tiles_of(lengths)
    changed = whole.clone()
    begin = sum(lengths[:4])
    changed[begin : begin + lengths[4]] += 1
    different = (attend(whole, tiles) != attend(changed, tiles)).flatten(1).any(dim=1)
    assert different[begin : begin + lengths[4]].all()
    assert int(different.sum()) == lengths[4]


def dropped_weights(whole, tiles, lengths, **options):
    """The attention weights [T, h, places], read off with unit vectors for values."""
    width = whole.shape[-1]
    unit = torch.cat([torch.eye(width, device=DEVICE)[:length] for length in lengths])
    query, key, _ = whole.unbind(1)
    shown = torch.stack([query, key, unit[:, None].expand_as(query)], dim=1)
    return attend(shown, tiles, **options)


@pytest.fixture
def dropping():
    """Query, key and value of sequences no longer than heads are wide, with their tiles."""
    lengths = [8, 16, 30, 64, 64, 11]
    return operands(sum(lengths), 64, torch.float32).detach(), tiles_of(lengths), lengths


def test_weights_are_dropped_in_their_share_and_scaled(dropping):
    share, found = 0.3, dropped_weights(*dropping, dropout=0.3)
    weights = dropped_weights(*dropping)
    exist = weights > 0
    kept = found[exist] > 0
    torch.testing.assert_close(found[exist][kept], weights[exist][kept] / (1 - share))
    assert not found[~exist].any()
    count = HEADS * sum(length**2 for length in dropping[2])
    assert int(exist.sum()) == count
    assert abs(int(kept.sum()) - count * (1 - share)) < 4 * (count * share * (1 - share)) ** 0.5


def test_a_seed_has_a_mask_and_each_bit_of_it_counts(dropping):
    seeds = (1, 1 + 2**40, 2**61)
    masks = [dropped_weights(*dropping, dropout=0.3, seed=seed) > 0 for seed in seeds]
    exist = dropped_weights(*dropping) > 0
    for number, (seed, mask) in enumerate(zip(seeds, masks, strict=True)):
        assert torch.equal(mask, dropped_weights(*dropping, dropout=0.3, seed=seed) > 0)
        for other in masks[:number]:
            agree = (mask == other)[exist].double().mean().item()
            sigma = (0.58 * 0.42 / int(exist.sum())) ** 0.5
            assert abs(agree - 0.58) < 4 * sigma  # 0.7 ** 2 + 0.3 ** 2, as of independent masks


def test_heads_and_rows_have_masks_of_their_own(dropping):
    mask = dropped_weights(*dropping, dropout=0.5) > 0
    rows = mask[sum(dropping[2][:3]) : sum(dropping[2][:5])].flatten(0, 1)
    assert len(rows.unique(dim=0)) == len(rows) == 2 * 64 * HEADS


def test_gradients_have_the_mask_of_the_forward_pass(dropping):
    whole, tiles, lengths = dropping
    weights = dropped_weights(whole, tiles, lengths)
    factors = torch.where(weights > 0, dropped_weights(whole, tiles, lengths, dropout=0.3) / weights, 0.0).double()
    whole = whole.clone().requires_grad_()
    reference = whole.detach().double().requires_grad_()
    found = attend(whole, tiles, dropout=0.3)
    parts = []
    for part, own in zip(reference.split(lengths), factors.split(lengths), strict=True):
        query, key, value = part.permute(1, 2, 0, 3)
        plain_weights = (query @ key.transpose(1, 2) / 8).softmax(-1)
        parts.append((plain_weights * own[..., : len(part)].transpose(0, 1) @ value).transpose(0, 1))
    expected = torch.cat(parts)
    assert_alike(found, expected, 1e-5)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    found.backward(upstream)
    expected.backward(upstream.double())
    for by_found, by_expected in zip(whole.grad.unbind(1), reference.grad.unbind(1), strict=True):
        assert_alike(by_found, by_expected, 1e-5)


def test_attention_layers_call_it_with_the_defaults_of_transformers():
    """Without a scale it is 1 / sqrt(e), without a window all is seen; torch's generator gives the mask."""
    lengths = LENGTHS[64]
    whole, tiles = operands(sum(lengths), 48, torch.bfloat16).detach(), tiles_of(lengths)
    rows = whole.unbind(1)
    found = attend_in_tiles(*rows, tiles, None, 0.0, None)
    assert_alike(found, plain(whole.double(), lengths), ERRORS[torch.bfloat16])
    near = attend_in_tiles(*rows, tiles, 0.1, 0.0, 3)
    assert_alike(near, plain(whole.double(), lengths, window=3, scaling=0.1), ERRORS[torch.bfloat16])
    dropped = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        dropped.append(attend_in_tiles(*rows, tiles, None, 0.2, None))
    assert torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], dropped[2])
