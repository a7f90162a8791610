"""Memory-mapped index of all names of a graph: a trie whose nodes are sorted hashes of word sequences.

An Aho-Corasick automaton over a million names takes a minute to build and a gibibyte in each process. This index takes
seconds, is shared by all processes of a host, and matches millions of words per second.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.corpus.everyday_words import EverydayWords
from bali_ds.corpus.normalization import WordHasher, split_words
from bali_ds.corpus.stopwords import is_stop_name, is_symbol
from bali_ds.directories import Output, published_directory
from bali_ds.errors import InputError
from bali_ds.files import read_json, write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.npy import open_npy

FORMAT_VERSION = 3
LONGEST_NAME = 12
"""Words of a name; longer names are not indexed."""

_TOKEN_START = re.compile(r"([^\W_]+)[-\u2010\u2011(]\Z")
_TOKEN_REST = re.compile(r"[-\u2010\u2011]([^\W_]+)")
_SHORTEST_MODIFIER = 3

_Hashes = NDArray[np.uint64]
_BATCH = 1 << 16


class NameMatches(NamedTuple):
    """The longest name that begins at each word, for words that begin one; int64 [n] each, words ascending.

    Attributes:
        words: position of the first word.
        lengths: number of words.
        rows: row of the name in the index.
    """

    words: NDArray[np.int64]
    lengths: NDArray[np.int64]
    rows: NDArray[np.int64]


class NameIndex:
    """Index from normalized word sequences to the concepts with this name.

    Attributes:
        keys: uint64 [K], hashes of all names and of all their prefixes, ascending.
        extends: bool [K], whether it is a prefix of a longer name.
        offsets: int64 [K + 1]; the concepts with name k are concept_ids[offsets[k]:offsets[k + 1]], best first.
        concept_ids: int32 [C].
        preferred: bool [C], whether this name is the preferred name of the concept.
        spellings: uint64 [C], the hash of the only spelling in which this name is valid, 0 if all are.

    Raises:
        InputError: the index was built from another graph, or is damaged.
    """

    def __init__(self, path: Path, graph: KnowledgeGraph) -> None:
        if read_json(path / "dictionary.json") != _description(graph):
            raise InputError(f"{path}: is the name index of another graph or version; remove it")
        columns = {
            name: open_npy(path / f"{name}.npy", dtype, (None,), f"remove {path}") for name, dtype in _COLUMNS.items()
        }
        self.keys: _Hashes = columns["keys"]
        self.extends = columns["extends"]
        self.offsets = columns["offsets"]
        self.concept_ids = columns["concepts"]
        self.preferred = columns["preferred"]
        self.spellings = columns["spellings"]
        self._check(path, graph)

    def _check(self, path: Path, graph: KnowledgeGraph) -> None:
        """Refuse columns that contradict each other, before any of them is an index into another."""
        offsets, concept_ids = self.offsets, self.concept_ids
        whole = len(self.keys) and len(self.keys) == len(self.extends) == len(offsets) - 1
        whole = whole and len(concept_ids) == len(self.preferred) == len(self.spellings)
        if not whole or offsets[0] or offsets[-1] != len(concept_ids) or (offsets[1:] < offsets[:-1]).any():
            raise InputError(f"{path}: is damaged; remove it")
        if len(concept_ids) and not 0 <= concept_ids.min() <= concept_ids.max() < graph.num_concepts:
            raise InputError(f"{path}: is damaged; remove it")

    def longest_matches(self, hashes: _Hashes) -> NameMatches:
        """Return the longest name that begins at each word.

        Args:
            hashes: uint64 [n], hashes of normalized words; 0 is a separator that no name spans.
        """
        lengths = np.zeros(len(hashes), np.int64)
        matched_rows = np.zeros(len(hashes), np.int64)
        alive = np.flatnonzero(hashes)
        paths = extend(np.zeros(len(alive), np.uint64), hashes[alive])
        for length in range(1, LONGEST_NAME + 1):
            distinct, which = np.unique(paths, return_inverse=True)  # searching in sorted order stays in the CPU cache
            rows = np.minimum(np.searchsorted(self.keys, distinct), len(self.keys) - 1)[which]
            known = self.keys[rows] == paths
            alive, paths, rows = alive[known], paths[known], rows[known]
            names = self.offsets[rows + 1] > self.offsets[rows]
            lengths[alive[names]], matched_rows[alive[names]] = length, rows[names]
            further = self.extends[rows] & (alive + length < len(hashes))
            alive, paths = alive[further], paths[further]
            if not len(alive):
                break
            paths = extend(paths, hashes[alive + length])
        found = np.flatnonzero(lengths)
        return NameMatches(found, lengths[found], matched_rows[found])


_COLUMNS = {
    "keys": "<u8", "extends": "?", "offsets": "<i8", "concepts": "<i4", "preferred": "?", "spellings": "<u8",
}  # fmt: skip
DICTIONARY = Output(
    "a name index",
    "dictionary.json",
    ("format_version", "graph_fingerprint"),
    tuple(f"{name}.npy" for name in _COLUMNS),
)


def extend(paths: _Hashes, words: _Hashes) -> _Hashes:
    """Return the hashes of word sequences extended by one word."""
    mixed = (paths ^ words) * np.uint64(0x9E3779B97F4A7C15)
    return mixed ^ (mixed >> np.uint64(29))


def open_dictionary(path: Path, graph: KnowledgeGraph) -> NameIndex:
    """Open the name index of a graph at `path`; build and publish it first if it does not exist."""
    if not (path / "dictionary.json").is_file():
        with published_directory(path, DICTIONARY) as directory:
            for name, column in _columns(graph).items():
                np.save(directory / f"{name}.npy", column, allow_pickle=False)
            write_json(directory / "dictionary.json", _description(graph))
    return NameIndex(path, graph)


def _description(graph: KnowledgeGraph) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, "graph_fingerprint": graph.fingerprint}


def _columns(graph: KnowledgeGraph) -> dict[str, NDArray[Any]]:
    everyday_words = EverydayWords(graph.num_concepts)
    batches = list(_paths(graph, everyday_words))
    if not batches:
        raise InputError(f"{graph.path}: has no names to find in texts; build the graph with names, or use --link gold")
    paths, concept_ids, preferred, spellings, single, inner = (
        np.concatenate(parts) for parts in zip(*batches, strict=True)
    )
    kept = np.ones(len(paths), np.bool_)
    hasher = WordHasher()
    for number in np.flatnonzero(everyday_words.contain(single) & ~preferred).tolist():
        best = split_words(graph.preferred_name(int(concept_ids[number]))).texts
        kept[number] = int(single[number]) in hasher(best)
    paths, concept_ids, preferred, spellings = (column[kept] for column in (paths, concept_ids, preferred, spellings))
    keys = np.unique(np.concatenate([paths, inner]))
    order = np.lexsort((spellings, concept_ids, paths))
    columns = [column[order] for column in (paths, concept_ids, spellings)]
    firsts = np.flatnonzero(np.append(True, np.any([column[1:] != column[:-1] for column in columns], axis=0)))
    paths, concept_ids, spellings = (column[firsts] for column in columns)
    preferred = np.logical_or.reduceat(preferred[order], firsts)
    degrees = graph.edge_offsets[concept_ids + 1].astype(np.int64) - graph.edge_offsets[concept_ids]
    order = np.lexsort((spellings, concept_ids, -degrees, ~preferred, paths))
    return {
        "keys": keys,
        "extends": np.isin(keys, inner),
        "offsets": np.append(np.searchsorted(paths, keys), len(paths)),
        "concepts": concept_ids[order].astype(np.int32),
        "preferred": preferred[order],
        "spellings": spellings[order],
    }


def symbol_spelling(text: str, start: int, end: int) -> int:
    """Return the hash of a span if it may be a symbol there, else 0.

    A symbol is a whole token: "TNF" in "anti-TNF" and "TNF-mediated", but not in "TNF-2" or "p-TNF", nor "ARF" in
    "p14(ARF)".
    """
    before, after = _TOKEN_START.search(text, max(0, start - 32), start), _TOKEN_REST.match(text, end)
    is_whole = all(part is None or _is_modifier(part[1]) for part in (before, after))
    return _spelling_hash(text[start:end]) if is_whole else 0


def _is_modifier(part: str) -> bool:
    return len(part) >= _SHORTEST_MODIFIER and part.islower() and part.isalpha()


def _spelling_hash(word: str) -> int:
    """Return a hash of a symbol as it is written but for the plural "s" of "SNPs"; not 0, equal on every machine."""
    if word.endswith("s") and word[:-1].isupper():
        word = word[:-1]
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little") | 1


class _Batch(NamedTuple):
    """A batch of names; arrays of one value per name but for `inner`.

    Attributes:
        paths: hashes of the names.
        concept_ids: their concepts.
        preferred: whether each is the preferred name.
        spellings: the spelling of a symbol, else 0.
        single: the hash of the word of a name of one word that is not a symbol, else 0.
        inner: hashes of proper prefixes of names.
    """

    paths: _Hashes
    concept_ids: NDArray[np.int64]
    preferred: NDArray[np.bool_]
    spellings: _Hashes
    single: _Hashes
    inner: _Hashes


def _paths(graph: KnowledgeGraph, everyday_words: EverydayWords) -> Iterator[_Batch]:
    """Yield the names in batches, and count their words."""
    hasher = WordHasher()
    for start in range(0, graph.num_names, _BATCH):
        name_ids, hashes, lengths, spellings = [], [], [], []
        for name_id in range(start, min(start + _BATCH, graph.num_names)):
            words = split_words(graph.name(name_id)).texts
            if 0 < len(words) <= LONGEST_NAME and not is_stop_name(words):
                name_ids.append(name_id)
                hashes += hasher(words)
                lengths.append(len(words))
                spellings.append(_spelling_hash(words[0]) if is_symbol(words) else 0)
        if not name_ids:
            continue
        flat, counts, names = np.array(hashes, np.uint64), np.array(lengths), np.array(name_ids)
        symbols = np.array(spellings, np.uint64)
        concept_ids = np.searchsorted(graph.name_offsets, names, side="right") - 1
        everyday_words.count(flat, np.repeat(concept_ids, counts))
        at = np.cumsum(counts) - counts
        single = np.where((counts == 1) & (symbols == 0), flat[at], np.uint64(0))
        paths, inner = np.zeros(len(counts), np.uint64), []
        for length in range(LONGEST_NAME):
            longer = np.flatnonzero(counts > length)
            if length:
                inner.append(paths[longer])
            paths[longer] = extend(paths[longer], flat[at[longer] + length])
        preferred = graph.name_offsets[concept_ids] == names
        yield _Batch(paths, concept_ids, preferred, symbols, single, np.unique(np.concatenate(inner)))
