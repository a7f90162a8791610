"""Memory of a linker: the mentions of a linked corpus, which a query can resemble as it can a name."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bali_ds.inference.concept_dictionary import ConceptDictionary
from bali_ds.inference.encoder import EncoderLike

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Memory:
    """Distinct pairs of a mention string, in lower case, and its concept.

    Attributes:
        strings: m strings.
        concepts: int64 [m], indices into the identifiers of a dictionary.
        shares: float32 [m], the part of a string's mentions that has this concept, in (0, 1].
        alone: float32 [m, d], the string by itself.
        context: float32 [m, d], the mean over its mentions read in their texts; None if only strings are compared.
    """

    strings: Sequence[str]
    concepts: NDArray[np.int64]
    shares: NDArray[np.float32]
    alone: Vectors
    context: Vectors | None = None


def build_memory(
    encoder: EncoderLike,
    mentions: Sequence[str],
    gold: Sequence[tuple[str, ...]],
    dictionary: ConceptDictionary,
    places: Sequence[tuple[str, int, int]] = (),
) -> Memory:
    """Return the memory of linked mentions; concepts that the dictionary lacks are dropped.

    Args:
        encoder: the encoder of the queries.
        mentions: n strings.
        gold: the concept identifiers of each.
        dictionary: the concepts.
        places: (text, start, end) of each mention, if they are to be remembered in context; else empty.
    """
    linked = [
        (row, mention.lower(), concept)
        for row, (mention, cuis) in enumerate(zip(mentions, gold, strict=True))
        for concept in dictionary.rows_of(cuis)
    ]
    counts = Counter((string, concept) for _, string, concept in linked)
    totals = Counter(string for _, string, _ in linked)
    pairs = {pair: number for number, pair in enumerate(counts)}
    strings = [string for string, _ in pairs]
    shares = np.array([count / totals[string] for (string, _), count in counts.items()], np.float32)
    context = None
    if places:
        rows = np.array([row for row, _, _ in linked], np.int64)
        of_pair = np.array([pairs[string, concept] for _, string, concept in linked], np.int64)
        read = encoder.encode_mentions(places)
        context = np.zeros((len(pairs), read.shape[1]), np.float32)
        np.add.at(context, of_pair, read[rows])
        context /= np.maximum(np.linalg.norm(context, axis=1, keepdims=True), 1e-12)
    concepts = np.array([concept for _, concept in pairs], np.int64)
    return Memory(strings, concepts, shares, encoder.encode(strings, query=True), context)
