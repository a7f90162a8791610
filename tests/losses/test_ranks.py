"""Several ranks: the loss and the averaged gradients are those of one process on the whole batch."""

import pytest
import torch
import torch.nn.functional as F

from tests.losses.rank_cases import BIAS, CASES, SCALE, SPLITS, WAYS, start
from tests.losses.rounding import rounding
from tests.losses.test_against_libraries import theirs
from tests.losses.test_contrastive import assert_close, evaluate, expected, expected_of_rounded

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return start(tmp_path_factory.mktemp("ranks"), CASES)


def whole(case, results):
    """Return the loss, and the gradients averaged over ranks."""
    size = len(SPLITS[case.split][0])
    got = [results[rank][case.name][0] for rank in range(size)]
    assert all(torch.equal(each["loss"], got[0]["loss"]) for each in got)
    gradients = [[each["gradients"][leaf].double() / size for each in got] for leaf in range(4)]
    return [
        got[0]["loss"].double(),
        torch.cat(gradients[0]),
        torch.cat(gradients[1]),
        sum(gradients[2]),
        sum(gradients[3]),
    ]


@pytest.mark.parametrize("name", BY_NAME)
def test_equals_one_process(name, results):
    case = BY_NAME[name]
    if case.communication_dtype is None:
        want = expected(case.kind, case.data(), SCALE, BIAS)
    else:
        want = expected_of_rounded(case.kind, case.data(), SCALE, BIAS, case.communication_dtype)
    assert_close(whole(case, results), want, rounding(SCALE))


@pytest.mark.parametrize("split", ["uneven", "three-empty", "four"])
@pytest.mark.parametrize("kind", ["ntxent", "multi_similarity"])
def test_equals_pytorch_metric_learning_on_the_whole_batch(kind, split, results):
    case = BY_NAME[f"{kind}-{split}-ring"]
    queries, keys, *ids = case.data()
    labels = torch.cat(ids)
    want = evaluate(
        lambda q, k, _scale, _bias: theirs(kind, torch.cat([q, k]), labels, SCALE),
        queries.double(), keys.double(), SCALE,
    )  # fmt: skip
    got = whole(case, results)
    assert_close([*got[:3], want[3], want[4]], want, rounding(SCALE))


@pytest.mark.parametrize("name", [case.name for case in CASES if case.repeated])
def test_repeats_bit_for_bit(name, results):
    for rank in results:
        first, second = rank[name]
        assert torch.equal(first["loss"], second["loss"])
        assert all(torch.equal(*pair) for pair in zip(first["gradients"], second["gradients"], strict=True))


@pytest.mark.parametrize("kind", ["ntxent", "clip"])
def test_every_algorithm_gives_the_same_for_rounded_features(kind, results):
    gathered, *others = (whole(BY_NAME[f"{kind}-four-{way}-bfloat16"], results) for way in WAYS)
    for other in others:
        assert_close(other, gathered, rounding(SCALE))


@pytest.mark.parametrize("kind", ["ntxent", "clip"])
@pytest.mark.parametrize("way", ["gather", "ring"])
def test_bytes_sent(kind, way, results):
    """At most 8 N d bytes a rank, besides ids and sums of each view."""
    (queries, keys), width = SPLITS["four"], 12
    pairs, views = max(sum(queries), sum(keys)), sum(queries) + sum(keys)
    for rank in results:
        sent = rank[f"{kind}-four-{way}-bfloat16"][0]["bytes_sent"]
        assert sent <= 8 * (pairs + 2) * width + 80 * views + 200


def test_masked_language_model_loss(results):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(11, 6, generator=generator), torch.randint(6, (11,), generator=generator)
    logits.requires_grad_()
    want = F.cross_entropy(logits, labels)
    want.backward()
    parts = [rank["masked language model"] for rank in results[:3]]
    assert all(part["loss"] == pytest.approx(float(want.detach()), rel=1e-6) for part in parts)
    torch.testing.assert_close(torch.cat([part["gradient"] for part in parts]) / 3, logits.grad)
