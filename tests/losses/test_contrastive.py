"""The contrastive losses on one process, every kind against the dense form in float64."""

from typing import get_args

import pytest
import torch

from bali_ds.config.objectives import ContrastiveConfig
from bali_ds.losses.contrastive import contrastive_loss
from bali_ds.losses.contrastive.formulas import FORMULAS
from tests.losses import dense_contrastive as dense
from tests.losses.rounding import rounding, scale_condition

KINDS = ("ntxent", "clip", "supcon", "marginal", "sigmoid", "multi_similarity")


def evaluate(loss, queries, keys, scale, bias=0.0):
    """Return (loss, gradients by queries, keys, scale and bias), all float64."""
    leaves = [tensor.clone().requires_grad_() for tensor in (queries, keys)]
    leaves += [torch.tensor([value], dtype=queries.dtype, requires_grad=True) for value in (scale, bias)]
    value = loss(*leaves)
    gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    return [value.detach().double().reshape(())] + [
        torch.zeros_like(leaf).double() if gradient is None else gradient.double()
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]


def expected(kind, data, scale, bias=0.0, **options):
    queries, keys, query_ids, key_ids = data
    return evaluate(
        lambda q, k, s, b: dense.dense_loss(q, k, s, query_ids, key_ids, kind, bias=b, **options),
        queries.double(), keys.double(), scale, bias,
    )  # fmt: skip


def obtained(kind, data, scale, bias=0.0, **options):
    queries, keys, query_ids, key_ids = data
    return evaluate(
        lambda q, k, s, b: contrastive_loss(
            q, k, s, query_concept_ids=query_ids, key_concept_ids=key_ids, kind=kind, logit_bias=b, **options
        ),
        queries, keys, scale, bias,
    )  # fmt: skip


def expected_of_rounded(kind, data, scale, bias, dtype):
    """The same where unit features are rounded to `dtype`: gradients pass the rounding unchanged."""
    units = [torch.nn.functional.normalize(rows.double()).to(dtype) for rows in data[:2]]
    want = expected(kind, (*units, *data[2:]), scale, bias, normalize=False)
    for place, (rows, unit) in enumerate(zip(data[:2], units, strict=True), start=1):
        radial = (want[place] * unit).sum(1, keepdim=True) * unit
        want[place] = (want[place] - radial) / rows.double().norm(dim=1, keepdim=True)
    return want


def assert_close(got, want, tolerance, floor=1e-12, scale_tolerance=None):
    for name, mine, true in zip(("loss", "queries", "keys", "scale", "bias"), got, want, strict=True):
        assert torch.isfinite(mine).all(), name
        error = (mine - true).norm() / true.norm().clamp(min=floor)
        allowed = scale_tolerance if name == "scale" and scale_tolerance is not None else tolerance
        assert error <= allowed, f"{name}: relative error {error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 7, 64, 768])
def test_every_kind_equals_the_dense_form(kind, width):
    data = dense.views(width, 61, 53, width, concepts=40)
    floor = 1e-6 if width == 1 else 1e-12  # directions alone cannot change there: the dense form's 0 is noise
    assert_close(
        obtained(kind, data, 14.3, -1.0, tile_size=16), expected(kind, data, 14.3, -1.0), rounding(14.3), floor
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 50.0, 100.0])
@pytest.mark.parametrize("saturated", [False, True])
@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_any_scale(kind, scale, saturated, kernels):
    """Saturated losses go down to 1e-20, and so do their gradients; at low scales the scale's own nearly cancels."""
    data = dense.views(3, 80, 80, 64, concepts=50, saturated=saturated)
    of_scale = rounding(scale, scale_condition(kind, data, scale))
    got = obtained(kind, data, scale, kernels=kernels)
    assert_close(got, expected(kind, data, scale), rounding(scale), 1e-300, of_scale)


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("scale", [50.0, 100.0])
@pytest.mark.parametrize("seed", [3, 38])
def test_scale_gradient_of_multi_similarity_where_no_negative_is_near(width, scale, seed):
    """It is as small as the exponential of the nearest negative, while the gradients of positives are large."""
    data = dense.views(seed, 80, 80, width, concepts=50)
    want = expected("multi_similarity", data, scale)
    assert 0 < want[3].abs() < 1e-2 * want[1].norm()
    assert_close(obtained("multi_similarity", data, scale), want, rounding(scale), 1e-300)


@pytest.mark.parametrize("kind", ["ntxent", "clip"])
def test_saturated_pairs_that_plain_float32_gets_wrong(kind):
    queries, keys, query_ids, key_ids = dense.views(17, 400, 400, 64, concepts=10**9)
    data = (queries, queries / queries.norm(dim=1, keepdim=True) + 0.1 * keys, query_ids, key_ids)
    want = expected(kind, data, 100.0)
    assert want[0] < 1e-4
    assert_close(obtained(kind, data, 100.0), want, rounding(100.0))


@pytest.mark.parametrize("kind", KINDS)
def test_heavy_tailed_duplicates(kind):
    data = dense.views(4, 150, 130, 24, concepts=60, zipf=True)
    assert_close(obtained(kind, data, 20.0, tile_size=32), expected(kind, data, 20.0), rounding(20.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_queries", "n_keys"), [(0, 0), (5, 0), (0, 5), (1, 1), (3, 9)])
def test_few_views(kind, n_queries, n_keys):
    data = dense.views(5, n_queries, n_keys, 8, concepts=3)
    assert_close(obtained(kind, data, 10.0), expected(kind, data, 10.0), rounding(10.0))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"sigmoid"}))
def test_one_concept_gives_zero(kind):
    data = dense.views(6, 12, 10, 8, concepts=1)
    assert all(not value.any() for value in obtained(kind, data, 10.0))


@pytest.mark.parametrize("kind", KINDS)
def test_outliers_beyond_the_range_of_one_exponent(kind):
    """One view opposite to all others: at this scale its exponentials underflow in float32 and theirs do not."""
    queries, keys, query_ids, key_ids = dense.views(8, 40, 40, 16, concepts=1000)
    center = torch.randn(16, generator=torch.Generator().manual_seed(2))
    queries, keys = center + 0.05 * queries, center + 0.3 * keys
    queries[:2], keys[:1] = -queries[:2], -keys[:1]
    data = (queries, keys, query_ids, key_ids)
    assert_close(obtained(kind, data, 150.0), expected(kind, data, 150.0), rounding(150.0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tile_size_leaves_the_result_alone(kind):
    data = dense.views(9, 40, 25, 16, concepts=30)
    want = expected(kind, data, 30.0)
    for tile in (3, 16, 1000):
        assert_close(obtained(kind, data, 30.0, tile_size=tile), want, rounding(30.0))


@pytest.mark.parametrize("kind", KINDS)
def test_results_repeat_bit_for_bit(kind):
    data = dense.views(10, 90, 90, 32, concepts=50)
    first, second = (obtained(kind, data, 20.0, tile_size=32) for _ in range(2))
    assert all(torch.equal(mine, again) for mine, again in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"multi_similarity"}))
def test_gradcheck(kind):
    queries, keys, query_ids, key_ids = dense.views(11, 9, 7, 4, concepts=5)
    inputs = [queries.double(), keys.double(), torch.tensor(5.0).double(), torch.tensor(-0.5).double()]

    def loss(q, k, s, b):
        return contrastive_loss(
            q, k, s, query_concept_ids=query_ids, key_concept_ids=key_ids, kind=kind, logit_bias=b, tile_size=4
        )

    assert torch.autograd.gradcheck(loss, [each.requires_grad_() for each in inputs])


def test_zero_vector_stays_finite():
    queries, keys, query_ids, key_ids = dense.views(12, 10, 10, 8, concepts=8)
    queries[3] = 0
    got = obtained("ntxent", (queries, keys, query_ids, key_ids), 10.0)
    assert all(torch.isfinite(each).all() for each in got)
    assert not got[1][3].any()


def test_without_gradients_the_value_is_the_same():
    queries, keys, query_ids, key_ids = dense.views(13, 40, 40, 8, concepts=30)
    options = {"query_concept_ids": query_ids, "key_concept_ids": key_ids}
    value = contrastive_loss(queries, keys, 10.0, **options)
    trained = contrastive_loss(queries.requires_grad_(), keys, 10.0, **options)
    assert trained.requires_grad
    assert not value.requires_grad
    assert torch.equal(value, trained)


def test_bfloat16_features_give_bfloat16_gradients():
    queries, keys, query_ids, key_ids = dense.views(14, 40, 40, 16, concepts=30)
    data = (queries.bfloat16(), keys.bfloat16(), query_ids, key_ids)
    once_rounded = 2**-8 + rounding(10.0)  # everything else is float32
    assert_close(obtained("ntxent", data, 10.0), expected("ntxent", data, 10.0), once_rounded)


@pytest.mark.parametrize("kind", KINDS)
def test_communication_in_bfloat16_is_the_loss_of_rounded_unit_features(kind):
    data = dense.views(15, 40, 40, 16, concepts=30)
    got = obtained(kind, data, 10.0, -1.0, communication_dtype=torch.bfloat16)
    assert_close(got, expected_of_rounded(kind, data, 10.0, -1.0, torch.bfloat16), rounding(10.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "triplet"}, "kind: 'triplet' is not one of ntxent"),
        ({"kernels": "cuda"}, "kernels: 'cuda' is not one of auto"),
        ({"communication": "pigeon"}, "communication: 'pigeon' is not one of auto"),
        ({"query_concept_ids": torch.arange(7)}, "8 queries have 7 concept ids"),
        ({"key_concept_ids": torch.arange(9)}, "8 keys have 9 concept ids"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    queries, keys, *_ = dense.views(16, 8, 8, 16, concepts=1000)
    ids = torch.arange(8)
    with pytest.raises(ValueError, match=message):
        contrastive_loss(queries, keys, 1.0, **{"query_concept_ids": ids, "key_concept_ids": ids} | options)


@pytest.mark.parametrize("kind", get_args(ContrastiveConfig.model_fields["kind"].annotation))
def test_the_settings_know_which_kinds_compare_all_views(kind):
    formula = FORMULAS[kind](torch.tensor(10.0), torch.tensor(-10.0))
    assert ContrastiveConfig(kind=kind).joint == formula.joint
