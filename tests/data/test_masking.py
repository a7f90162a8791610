"""Rates and independence of what is masked; bounds are five standard deviations of a binomial count."""

import numpy as np
import pytest

from bali_ds.data.masking import mask_names, mask_passages, sample_keys
from bali_ds.data.sequences import Vocabulary
from bali_ds.data.settings import StreamSettings
from bali_ds.randomness import derive

VOCABULARY = Vocabulary.from_index(
    {"vocab_size": 1000, "cls_id": 2, "sep_id": 3, "pad_id": 0, "mask_id": 4, "special_ids": [0, 1, 2, 3, 4]}
)


def close(count, total, share):
    return abs(count - total * share) < 5 * np.sqrt(total * share * (1 - share))


def passages(number=4000, length=50, epoch=0, **changes):
    """Many passages of ordinary tokens but for their ends; the tokens 10 to 19 are a mention."""
    tokens = np.random.default_rng(0).integers(5, 1000, (number, length))
    tokens[:, 0], tokens[:, -1] = 2, 3
    mentioned = np.zeros((number, length), bool)
    mentioned[:, 10:20] = True
    masked, labeled = mask_passages(
        tokens.ravel(), np.full(number, length), mentioned.ravel(), sample_keys(7, epoch, np.arange(number)),
        StreamSettings(seed=7, **changes), VOCABULARY,
    )  # fmt: skip
    chosen = np.zeros(number * length, bool)
    chosen[labeled] = True
    return tokens, masked.reshape(number, length), chosen.reshape(number, length)


def test_token_rates_and_fates():
    tokens, masked, labeled = passages(mention_masking=0.0)
    assert close(labeled.sum(), 4000 * 48, 0.15)
    assert not labeled[:, [0, -1]].any()
    assert np.array_equal(tokens[~labeled], masked[~labeled])
    total = labeled.sum()
    fate = masked[labeled]
    assert close((fate == 4).sum(), total, 0.8)
    assert close((fate == tokens[labeled]).sum(), total, 0.1 + 0.1 / 995)
    replaced = fate[(fate != 4) & (fate != tokens[labeled])]
    assert replaced.min() >= 5
    assert np.unique(replaced).size > 900
    per_place = labeled[:, 1:-1].sum(axis=0)
    assert all(close(count, 4000, 0.15) for count in per_place)


def test_mentions_are_masked_whole_and_get_no_label():
    _, masked, labeled = passages()
    covered = (masked[:, 10:20] == 4).all(axis=1)
    assert close(covered.sum(), 4000, 0.15)
    assert not labeled[covered, 10:20].any()
    outside = np.delete(labeled, np.r_[0, 10:20, 49], axis=1)
    assert close(outside.sum(), outside.size, 0.15)
    assert close(labeled[~covered, 10:20].sum(), (~covered).sum() * 10, 0.15)


def test_masks_change_with_the_epoch_and_not_with_the_rest_of_the_batch():
    _, first, first_labeled = passages(epoch=0)
    _, second, _ = passages(epoch=1)
    _, fewer, fewer_labeled = passages(number=10)
    assert (first != second).any(axis=1).mean() > 0.99
    assert np.array_equal(fewer, first[:10])
    assert np.array_equal(fewer_labeled, first_labeled[:10])


@pytest.mark.parametrize(("neighbors", "share"), [(0, 0.0), (1, 0.0), (2, 0.15), (30, 0.15)])
def test_names_are_masked_only_where_neighbors_can_tell(neighbors, share):
    masked = mask_names(derive(1, np.arange(20_000)), np.full(20_000, neighbors), StreamSettings())
    assert close(masked.sum(), 20_000, share) if share else not masked.any()


def test_one_concept_without_neighbors_does_not_affect_the_next():
    keys = derive(1, np.arange(1000))
    alone = mask_names(keys, np.full(1000, 5), StreamSettings())
    mixed = mask_names(keys, np.where(np.arange(1000) % 2, 5, 0), StreamSettings())
    assert np.array_equal(mixed[1::2], alone[1::2])
    assert not mixed[::2].any()
