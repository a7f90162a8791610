"""Which words mean something else in most texts than in the names of a graph: English word frequencies by wordfreq."""

import numpy as np
from numpy.typing import NDArray

from bali_ds.corpus.normalization import WordHasher

_COMMON = 10**-5.5
"""Fraction of English text from which on a word is common: once in 300,000 words."""
_SPECIFIC = 100
"""A word that is so many times as frequent among the concepts of a graph as in English is a word of its field."""


class EverydayWords:
    """Compares how frequent words are in English with how many concepts of a graph have them in a name.

    "Sensitivity" is a synonym of hypersensitivity and "expressed" one of gene expression, but texts mostly mean
    something else. "Cancer" and "disorder" are common too, and still words of the field.

    Args:
        num_concepts: number of concepts of the graph.
    """

    def __init__(self, num_concepts: int) -> None:
        from wordfreq import get_frequency_dict  # a second, and only an index that is built needs it

        common = {word: share for word, share in get_frequency_dict("en").items() if share >= _COMMON}
        hashes, rows = np.unique(np.array(WordHasher()(list(common)), np.uint64), return_inverse=True)
        self._hashes = hashes
        self._frequencies = np.zeros(len(hashes))
        np.maximum.at(self._frequencies, rows, np.array(list(common.values())))
        self._concepts = np.zeros(len(hashes), np.int64)
        self._num_concepts = num_concepts

    def count(self, hashes: NDArray[np.uint64], concept_ids: NDArray[np.int64]) -> None:
        """Count the words of names, of which the same concept is not counted twice.

        Args:
            hashes: uint64 [n], hashes of normalized words.
            concept_ids: int64 [n], the concept whose name has the word.
        """
        rows, known = self._find(hashes)
        pairs = np.unique(np.stack([rows[known], concept_ids[known]]), axis=1)
        np.add.at(self._concepts, pairs[0], 1)

    def contain(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return bool [n], whether each word is common in English and not one of the field, after all are counted."""
        rows, known = self._find(hashes)
        shares = self._concepts[rows] / max(self._num_concepts, 1)
        return known & (shares < _SPECIFIC * self._frequencies[rows])

    def _find(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        rows = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return rows, self._hashes[rows] == hashes
