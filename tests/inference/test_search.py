"""Search against a full stable sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.inference import search
from bali_ds.inference.search import InvertedFile, nearest


def brute(queries, keys, count):
    scores = queries @ keys.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(scores, order, 1)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), keys=st.integers(1, 60), count=st.integers(1, 12), block=st.integers(1, 7))
def test_equals_brute_force_with_ties(seed, keys, count, block):
    draw = np.random.default_rng(seed)
    queries = draw.integers(-2, 3, (5, 3)).astype(np.float32)
    key_vectors = draw.integers(-2, 3, (keys, 3)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "QUERY_BLOCK", 2)
        patch.setattr(search, "SCORE_BYTES", 8 * block)
        found, scores = nearest(queries, key_vectors, count)
    expected, expected_scores = brute(queries, key_vectors, min(count, keys))
    assert np.array_equal(found, expected)
    assert np.array_equal(scores, expected_scores)


def test_approximate_search_finds_nearly_all(tmp_path):
    draw = np.random.default_rng(0)
    centers = draw.normal(size=(50, 16))
    keys = (centers[draw.integers(0, 50, 5000)] + 0.3 * draw.normal(size=(5000, 16))).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    np.save(tmp_path / "keys.npy", keys)
    queries = keys[::50]
    found, scores = InvertedFile(np.load(tmp_path / "keys.npy", mmap_mode="r")).nearest(queries, 5)
    exact, _ = nearest(queries, keys, 5)
    overlap = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found, exact, strict=True)])
    assert overlap > 0.9
    assert (np.diff(scores, axis=1) <= 1e-6).all()
