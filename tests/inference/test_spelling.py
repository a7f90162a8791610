"""Character n-grams against scikit-learn's TF-IDF."""

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from bali_ds.inference.spelling import SpellingIndex


def test_cosines_equal_those_of_scikit_learn():
    names = ["Heart", "heart attack", "myocardial infarction", "a", "Cardiac arrest", "infarct", "heart"]
    strings = ["HEART attacks", "b", "myocardium", "zzzqqq", "heart"]
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), dtype=np.float64)
    expected = vectorizer.fit_transform(names)
    wanted = (vectorizer.transform(strings) @ expected.T).toarray()
    found = SpellingIndex(names).cosines(strings, torch.device("cpu")).numpy()
    assert found.shape == (5, 7)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert (found[3] == 0).all()
