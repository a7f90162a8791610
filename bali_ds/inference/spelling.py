"""Similarity of spelling: cosines of character n-grams weighted by TF-IDF, the sparse part of BioSyn.

BioSyn (Sung, Jeon, Lee and Kang, "Biomedical Entity Representations with Synonym Marginalization", ACL 2020) adds this
cosine, with a weight, to that of its encoder.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LONGEST = 3  # characters of an n-gram; three bytes and a length fit into 32 bits


class SpellingIndex:
    """TF-IDF vectors of names over n-grams of one to three bytes of their lowercase UTF-8.

    A vector is tf * (1 + ln((1 + n) / (1 + df))), scaled to unit length, as scikit-learn's `TfidfVectorizer` has it.

    Args:
        names: n names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        rows, grams = _grams(names)
        self._vocabulary, columns = np.unique(grams, return_inverse=True)
        pairs, counts = np.unique(rows * self._vocabulary.size + columns, return_counts=True)
        rows, columns = np.divmod(pairs, self._vocabulary.size)
        frequency = np.bincount(columns, minlength=self._vocabulary.size)
        self._weights = 1 + np.log((1 + len(names)) / (1 + frequency))
        begins = np.searchsorted(rows, np.arange(len(names)))
        self._names = columns, begins, self._unit(rows, columns, counts, len(names))
        self._on_device: dict[torch.device, tuple[Tensor, ...]] = {}

    def cosines(self, strings: Sequence[str], device: torch.device) -> Tensor:
        """Return the cosine of each string with each name, float32 [strings, names]."""
        rows, grams = _grams(strings)
        places = np.minimum(np.searchsorted(self._vocabulary, grams), self._vocabulary.size - 1)
        known = self._vocabulary[places] == grams
        pairs, counts = np.unique(rows[known] * self._vocabulary.size + places[known], return_counts=True)
        rows, columns = np.divmod(pairs, self._vocabulary.size)
        values = self._unit(rows, columns, counts, len(strings))
        dense = torch.zeros(self._vocabulary.size, len(strings), device=device)
        index = torch.from_numpy(columns).to(device), torch.from_numpy(rows).to(device)
        dense[index] = torch.from_numpy(values).to(device)
        if device not in self._on_device:
            self._on_device[device] = tuple(torch.from_numpy(each).to(device) for each in self._names)
        columns_of_names, begins, weights = self._on_device[device]
        return torch.nn.functional.embedding_bag(
            columns_of_names, dense, begins, mode="sum", per_sample_weights=weights
        ).T

    def _unit(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], counts: NDArray[np.int64], size: int
    ) -> NDArray[np.float32]:
        values = counts * self._weights[columns]
        lengths = np.sqrt(np.bincount(rows, values**2, size))
        return (values / lengths[rows]).astype(np.float32)


def _grams(strings: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the string and the code of each n-gram, both int64."""
    encoded = [string.lower().encode() for string in strings]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    text = np.frombuffer(b"".join(encoded), np.uint8).astype(np.int64)
    row = np.repeat(np.arange(len(encoded)), lengths)
    rows, grams = [row[:0]], [text[:0]]
    code = np.zeros_like(text)
    for size in range(1, _LONGEST + 1):
        last = text.size - size + 1
        code = code[: max(last, 0)] * 256 + text[size - 1 :]
        whole = row[: code.size] == row[size - 1 :]
        rows.append(row[: code.size][whole])
        grams.append((size << 24) + code[whole])
    return np.concatenate(rows), np.concatenate(grams)
