"""Split of documents into passages: whole sentences up to a token budget, without cutting a mention."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import sentencex
from numpy.typing import NDArray

from bali_ds.corpus.concept_resolver import ConceptResolver
from bali_ds.corpus.document import Document, ReadReport
from bali_ds.corpus.tokenizer import Encoding, Tokenizer

_MentionRows = NDArray[np.int64]
"""int64 [M, 3]: first token, one past the last token, concept id; sorted."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Consecutive sentences of a document.

    Attributes:
        number: position among all passages of the document, including those without a linked mention.
        start, end: code points in the document's text.
        tokens: int32 [T], special tokens included.
        mentions: int32 [M, 3]: first token, one past the last token, concept id; a composite mention has several rows.
    """

    number: int
    start: int
    end: int
    tokens: NDArray[np.int32]
    mentions: NDArray[np.int32]


def cut_passages(
    documents: Sequence[Document], tokenizer: Tokenizer, resolver: ConceptResolver, max_tokens: int, report: ReadReport
) -> list[list[Passage]]:
    """Return the passages of each document, at most `max_tokens` tokens each, special tokens included.

    A sentence longer than the budget is cut between words, outside of mentions. A mention is kept whole or, if it alone
    exceeds the budget, dropped and counted.
    """
    encodings = tokenizer.encode_batch([document.text for document in documents])
    pairs = zip(documents, encodings, strict=True)
    return [_cut_document(document, encoding, tokenizer, resolver, max_tokens, report) for document, encoding in pairs]


def _cut_document(
    document: Document,
    encoding: Encoding,
    tokenizer: Tokenizer,
    resolver: ConceptResolver,
    max_tokens: int,
    report: ReadReport,
) -> list[Passage]:
    budget = max_tokens - 2
    mentions = _mention_rows(document, encoding, resolver, budget, report)
    bounds = _fill_budget(_segments(document.text, encoding, mentions, budget), budget)
    passages = []
    kept = 0
    for number, (first, last) in enumerate(bounds):
        inside = mentions[(mentions[:, 0] >= first) & (mentions[:, 1] <= last)]
        kept += len(inside)
        passages.append(_passage(number, encoding, first, last, inside, tokenizer))
    if kept < len(mentions):
        report.count("mentions_cut", len(mentions) - kept)
    return passages


def _passage(
    number: int, encoding: Encoding, first: int, last: int, mentions: _MentionRows, tokenizer: Tokenizer
) -> Passage:
    tokens = np.empty(last - first + 2, np.int32)
    tokens[0], tokens[-1] = tokenizer.cls_id, tokenizer.sep_id
    tokens[1:-1] = encoding.ids[first:last]
    rows = (mentions - [first - 1, first - 1, 0]).astype(np.int32)
    return Passage(number, int(encoding.starts[first]), int(encoding.ends[last - 1]), tokens, rows)


def _mention_rows(
    document: Document, encoding: Encoding, resolver: ConceptResolver, budget: int, report: ReadReport
) -> _MentionRows:
    """Return the token spans and concepts of the linked mentions that a passage can hold."""
    rows: set[tuple[int, int, int]] = set()
    starts, ends = ([mention[at] for mention in document.mentions] for at in (0, 1))
    firsts = np.searchsorted(encoding.ends, np.array(starts, np.int32), side="right").tolist()
    lasts = np.searchsorted(encoding.starts, np.array(ends, np.int32), side="left").tolist()
    types, surfaces = [], []
    for mention, first, last in zip(document.mentions, firsts, lasts, strict=True):
        concept_ids = resolver.resolve(mention)
        if not concept_ids:
            report.count("mentions_outside_graph", bool(mention.ids))
        elif first >= last:
            report.count("mentions_without_tokens")
        elif last - first > budget:
            report.count("mentions_too_long")
        else:
            types.append(mention.type or "unknown")
            surfaces += [(mention.text.lower(), concept_id) for concept_id in concept_ids]
            rows.update((first, last, concept_id) for concept_id in concept_ids)
    report.count("linked_mentions", len(types))
    report.types.update(types)
    report.surfaces.update(surfaces)
    return np.array(sorted(rows), np.int64).reshape(-1, 3)


def _segments(text: str, encoding: Encoding, mentions: _MentionRows, budget: int) -> list[int]:
    """Return the token positions where a passage may begin or end: at sentences and, in long sentences, at words."""
    count = len(encoding.ids)
    if not count:
        return [0]
    free = _outside_mentions(count, mentions)
    ends = list(accumulate(len(sentence) for sentence in sentencex.segment("en", text)))
    sentences = np.searchsorted(encoding.starts, ends, side="left")
    cuts = [0]
    for cut in [*sentences[free[sentences]].tolist(), count]:
        while cut - cuts[-1] > budget:
            cuts.append(_cut_before(cuts[-1] + budget, cuts[-1], encoding, free))
        if cut > cuts[-1]:
            cuts.append(cut)
    return cuts


def _outside_mentions(count: int, mentions: _MentionRows) -> NDArray[np.bool_]:
    """Return bool [count + 1], whether a passage may begin or end before each token."""
    change = np.zeros(count + 2, np.int64)
    np.add.at(change, mentions[:, 0] + 1, 1)
    np.add.at(change, mentions[:, 1], -1)
    return np.cumsum(change)[: count + 1] == 0


def _cut_before(limit: int, start: int, encoding: Encoding, free: NDArray[np.bool_]) -> int:
    """Return the last position up to `limit` outside of mentions, between words if there is one."""
    positions = np.arange(start + 1, limit + 1)
    allowed = positions[free[start + 1 : limit + 1]]
    words = allowed[encoding.starts[allowed] > encoding.ends[allowed - 1]]
    best = words if len(words) else allowed
    return int(best[-1]) if len(best) else limit


def _fill_budget(cuts: list[int], budget: int) -> list[tuple[int, int]]:
    """Return token ranges, each of as many consecutive segments as fit into the budget."""
    bounds = []
    start = cuts[0]
    for before, cut in pairwise(cuts):
        if cut - start > budget:
            bounds.append((start, before))
            start = before
    if cuts[-1] > start:
        bounds.append((start, cuts[-1]))
    return bounds
