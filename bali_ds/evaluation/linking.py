"""Zero-shot entity linking: ranks the concepts of a dictionary for each mention, without fine-tuning."""

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.evaluation.bootstrap import intervals, paired_difference
from bali_ds.evaluation.linking_data import Queries
from bali_ds.inference.concept_dictionary import ConceptDictionary
from bali_ds.inference.encoder import EncoderLike
from bali_ds.progress_bar import progress_bar

SCORE_BYTES = 256 * 2**20
NOT_FOUND = np.iinfo(np.int64).max


def evaluate_linking(
    encoder: EncoderLike, dictionary: ConceptDictionary, queries: Queries, *, seed: int = 0, progress: bool = False
) -> dict[str, Any]:
    """Return Acc@1, Acc@5, Acc@20 and MRR with 95 % bootstrap intervals, by subset.

    Concepts are ranked by their most similar name (cosine). Acc@k is the fraction of mentions with a gold concept among
    the first k.

    Returns:
        {subset: {"n": ..., "acc@1": {"value", "low", "high"}, ..., "mrr": ...}}, all in 0..1, without empty subsets.
    """
    return summarize(rank_queries(encoder, dictionary, queries, progress=progress), dictionary, queries, seed=seed)


def summarize(
    ranks: NDArray[np.int64], dictionary: ConceptDictionary, queries: Queries, *, seed: int = 0
) -> dict[str, Any]:
    """Return the result of `evaluate_linking` for the given rank of each query.

    Where the queries have texts, intervals are over documents instead of mentions.
    """
    documents = _documents(queries)
    found = subsets(dictionary, queries)
    return {name: summary(ranks[rows], seed, _of(documents, rows)) for name, rows in found.items() if len(rows)}


def summary(ranks: NDArray[np.int64], seed: int = 0, documents: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """Return the number of mentions and their measures with 95 % bootstrap intervals, over documents if given."""
    return {"n": len(ranks), **intervals(measures(ranks), seed, documents)}


def compare_linking(
    first: NDArray[np.int64], second: NDArray[np.int64], dictionary: ConceptDictionary, queries: Queries, seed: int = 0
) -> dict[str, Any]:
    """Return the difference `second - first` of two models' ranks by paired bootstrap, by subset and measure."""
    table: dict[str, Any] = {}
    documents = _documents(queries)
    for name, rows in subsets(dictionary, queries).items():
        if len(rows):
            before, after = measures(first[rows]), measures(second[rows])
            table[name] = {
                measure: paired_difference(before[measure], after[measure], seed, _of(documents, rows))
                for measure in before
            }
    return table


def _documents(queries: Queries) -> NDArray[np.int64] | None:
    """Return the document of each query, int64 [n]; None without texts."""
    texts = {text: number for number, text in enumerate(dict.fromkeys(text for text, _, _ in queries.places))}
    return np.array([texts[text] for text, _, _ in queries.places], np.int64) if texts else None


def _of(documents: NDArray[np.int64] | None, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
    return None if documents is None else documents[rows]


def measures(ranks: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return the contribution of each mention to each measure: float64 [n] in 0..1 by name."""
    hits = {f"acc@{k}": (ranks <= k).astype(np.float64) for k in (1, 5, 20)}
    return {**hits, "mrr": np.where(ranks == NOT_FOUND, 0.0, 1.0 / ranks)}


def rank_queries(
    encoder: EncoderLike,
    dictionary: ConceptDictionary,
    queries: Queries,
    *,
    names: NDArray[np.float32] | None = None,
    progress: bool = False,
) -> NDArray[np.int64]:
    """Return the rank of the best gold concept of each mention: int64 [n], NOT_FOUND if the dictionary lacks it.

    Args:
        encoder: the model; each distinct string is encoded once.
        dictionary: names and their concepts.
        queries: mentions and gold concepts.
        names: vectors of the names; None encodes them.
        progress: show a progress bar.
    """
    distinct = {mention: row for row, mention in enumerate(dict.fromkeys(queries.mentions))}
    names = encoder.encode(dictionary.names, progress=progress) if names is None else names
    rows = np.array([distinct[mention] for mention in queries.mentions])
    vectors = encoder.encode(list(distinct), query=True, progress=progress)
    return concept_ranks(vectors, rows, names, dictionary, queries.gold, progress=progress)


def biosyn_ranks(
    encoder: EncoderLike, dictionary: ConceptDictionary, queries: Queries, names: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return the rank of each mention in BioSyn's protocol: int64 [n], NOT_FOUND as in `rank_queries`.

    Names are ranked instead of concepts. A composite mention is found among the first k names if each of its parts is,
    with any of its gold concepts (Sung et al., ACL 2020; `evaluate_topk_acc` of their code).

    Args:
        encoder: the model.
        dictionary: names and their concepts.
        queries: mentions with their parts.
        names: vectors of the names.
    """
    sizes = np.array([len(parts) for parts in queries.parts])
    distinct = {part: row for row, part in enumerate(dict.fromkeys(chain.from_iterable(queries.parts)))}
    rows = np.array([distinct[part] for parts in queries.parts for part in parts])
    gold = [own for own, count in zip(queries.gold, sizes, strict=True) for _ in range(count)]
    ranks = concept_ranks(encoder.encode(list(distinct), query=True), rows, names, dictionary, gold, of_names=True)
    return np.maximum.reduceat(ranks, np.cumsum(sizes) - sizes)


def concept_ranks(
    mentions: NDArray[np.float32],
    rows: NDArray[np.int64],
    names: NDArray[np.float32],
    dictionary: ConceptDictionary,
    gold: Any,
    *,
    of_names: bool = False,
    progress: bool = False,
) -> NDArray[np.int64]:
    """Return the exact rank of the best gold concept of each query, computed in bounded memory.

    The rank of a gold concept is 1 plus the number of other concepts with a name before the gold concept's best name.
    Names with equal scores keep the order of the dictionary; concepts that share a name share its position.

    Args:
        mentions: float32 [m, d], distinct mention vectors.
        rows: int64 [n], the row in `mentions` of each query.
        names: float32 [names, d], name vectors.
        dictionary: names and their concepts.
        gold: n tuples of concept identifiers.
        of_names: rank names instead of concepts: 1 plus the number of names before the gold concept's best name.
        progress: show a progress bar.

    Returns:
        int64 [n], NOT_FOUND if the dictionary has no gold concept of the query.
    """
    ranks = np.full(len(rows), NOT_FOUND)
    order = np.argsort(rows, kind="stable")
    block = max(1, SCORE_BYTES // (4 * len(names)))
    bar = progress_bar("rank", len(mentions), "mentions", shown=progress)
    for start in range(0, len(mentions), block):
        scores = mentions[start : start + block] @ names.T
        first, last = np.searchsorted(rows[order], [start, start + block])
        for query in order[first:last]:
            known = dictionary.rows_of(gold[query])
            if known:
                own = np.concatenate(list(map(dictionary.names_of, known)))
                before = _names_before(scores[rows[query] - start], own)
                ranks[query] = 1 + (len(before) if of_names else _concepts_before(before, known, dictionary))
        bar.update(len(scores))
    bar.close()
    return ranks


def _names_before(scores: NDArray[np.float32], own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the names before the best one of a concept's own names."""
    best = scores[own].max()
    place = own[scores[own] == best].min()
    before = np.flatnonzero(scores >= best)
    return before[(scores[before] > best) | (before < place)]


def _concepts_before(before: NDArray[np.int64], gold: list[int], dictionary: ConceptDictionary) -> int:
    """Return the number of distinct concepts of names, without the gold ones."""
    starts = dictionary.offsets[before]
    sizes = dictionary.offsets[before + 1] - starts
    flat = np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
    return len(np.setdiff1d(dictionary.concepts[flat], gold))


def subsets(dictionary: ConceptDictionary, queries: Queries) -> dict[str, NDArray[np.int64]]:
    """Return the query rows of each subset.

    - `all`: all mentions.
    - `unique`: each pair of lowercased mention and gold concepts once.
    - `unique_not_exact`: of these, mentions that are not a name of their concept, by the flag of the file or otherwise
      by case-insensitive lookup.
    - `unique_unseen_cui`, `unique_unseen_pair`: of these, concepts, or pairs of mention and concept, not seen in
      training; only for files with such flags.
    """
    first: dict[tuple[str, tuple[str, ...]], int] = {}
    for row, pair in enumerate(zip((mention.lower() for mention in queries.mentions), queries.gold, strict=True)):
        first.setdefault(pair, row)
    unique = np.array(list(first.values()))
    flags = dict(queries.flags)
    if "in_dict_exact" not in flags:
        flags["in_dict_exact"] = _exact(dictionary, queries)
    found = {"all": np.arange(len(queries.mentions)), "unique": unique}
    named = {"in_dict_exact": "not_exact", "cui_seen_in_train": "unseen_cui", "pair_seen_in_train": "unseen_pair"}
    for flag, name in named.items():
        if flag in flags:
            found[f"unique_{name}"] = unique[~flags[flag][unique]]
    return found


def _exact(dictionary: ConceptDictionary, queries: Queries) -> NDArray[np.bool_]:
    cuis_of: dict[str, set[str]] = {}
    for row, name in enumerate(dictionary.names):
        cuis_of.setdefault(name.lower(), set()).update(dictionary.concepts_of(row))
    return np.array(
        [
            not cuis_of.get(mention.lower(), set()).isdisjoint(gold)
            for mention, gold in zip(queries.mentions, queries.gold, strict=True)
        ]
    )
