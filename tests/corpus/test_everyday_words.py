import numpy as np

from bali_ds.corpus.everyday_words import EverydayWords
from bali_ds.corpus.normalization import WordHasher


def test_words_of_the_field_are_many_times_as_frequent_as_in_english():
    """Of a million English words 9 are "sensitivity", 85 "cancer", 6,600 "was", and 1.5 "anemia": not common."""
    hashes = np.array(WordHasher()(["sensitivity", "cancer", "was", "anemia", "kwashiorkor"]), np.uint64)
    everyday = EverydayWords(100_000)
    for word, concepts in zip(hashes, (50, 1000, 1000, 0, 0), strict=True):
        # Each concept has the word in two names, which count once: 50 of 100,000 are less than 900 of a million.
        everyday.count(np.repeat(word, 2 * concepts), np.repeat(np.arange(concepts), 2))
    assert everyday.contain(hashes).tolist() == [True, False, True, False, False]
    everyday.count(np.repeat(hashes[0], 50), 50 + np.arange(50))
    assert not everyday.contain(hashes[:1])[0]
