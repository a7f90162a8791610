"""All names of a graph as sorted hashes of word sequences, memory-mapped: found at millions of words a second.

An Aho-Corasick automaton over a million names takes a minute to make and a gibibyte in each process; this table takes
seconds and is shared by all processes of a host. It is a trie whose nodes are looked up by the hash of their path.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bali_ds.corpus.normalization import WordHasher, split_words
from bali_ds.corpus.stopwords import is_acronym, is_stop_name
from bali_ds.directories import Output, published_directory
from bali_ds.errors import InputError
from bali_ds.files import read_json, write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph

FORMAT_VERSION = 2
LONGEST_NAME = 12
"""Words of a name; longer ones are left out."""

_Hashes = NDArray[np.uint64]
_BATCH = 1 << 16


class Matches(NamedTuple):
    """Longest names that begin at some word, words ascending: int64 [n] each.

    `words` is the first word's position, `lengths` counts words, `entries` is the row in the dictionary.
    """

    words: NDArray[np.int64]
    lengths: NDArray[np.int64]
    entries: NDArray[np.int64]


class NameIndex:
    """The names of a graph by their folded words.

    Attributes:
        keys: uint64 [K], hashes of all names and of all their beginnings, ascending.
        extends: bool [K], is it the beginning of a longer name?
        offsets: int64 [K + 1]; the concepts named so are concepts[offsets[k]:offsets[k + 1]], best first.
        concepts: int32 [C].
        preferred: bool [C], is this name the concept's preferred one?
        acronyms: bool [C], does this name hold in capitals alone?
    """

    def __init__(self, path: Path, graph: KnowledgeGraph) -> None:
        if read_json(path / "dictionary.json") != _description(graph):
            raise InputError(f"{path}: is the dictionary of another graph; remove it")
        columns = {name: _mapped(path / f"{name}.npy") for name in _COLUMNS}
        self.keys: _Hashes = columns["keys"]
        self.extends = columns["extends"]
        self.offsets = columns["offsets"]
        self.concepts = columns["concepts"]
        self.preferred = columns["preferred"]
        self.acronyms = columns["acronyms"]

    def longest_matches(self, hashes: _Hashes) -> Matches:
        """Find the longest name that begins at each word, all words at once.

        Args:
            hashes: uint64 [n], folded words; 0 is no word, and no name reaches across it.
        """
        lengths = np.zeros(len(hashes), np.int64)
        entries = np.zeros(len(hashes), np.int64)
        alive = np.flatnonzero(hashes)
        paths = extend(np.zeros(len(alive), np.uint64), hashes[alive])
        for length in range(1, LONGEST_NAME + 1):
            distinct, which = np.unique(paths, return_inverse=True)  # sorted searches stay in the cache
            rows = np.minimum(np.searchsorted(self.keys, distinct), len(self.keys) - 1)[which]
            known = self.keys[rows] == paths
            alive, paths, rows = alive[known], paths[known], rows[known]
            names = self.offsets[rows + 1] > self.offsets[rows]
            lengths[alive[names]], entries[alive[names]] = length, rows[names]
            further = self.extends[rows] & (alive + length < len(hashes))
            alive, paths = alive[further], paths[further]
            if not len(alive):
                break
            paths = extend(paths, hashes[alive + length])
        found = np.flatnonzero(lengths)
        return Matches(found, lengths[found], entries[found])


def _mapped(file: Path) -> NDArray[Any]:
    """Map a column; as a plain array, whose small slices cost a fraction of a memmap's."""
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


_COLUMNS = ("keys", "extends", "offsets", "concepts", "preferred", "acronyms")
DICTIONARY = Output(
    "a dictionary of names",
    "dictionary.json",
    ("format_version", "graph_fingerprint"),
    tuple(f"{name}.npy" for name in _COLUMNS),
)


def extend(paths: _Hashes, words: _Hashes) -> _Hashes:
    """Return the hashes of word sequences that are one word longer."""
    mixed = (paths ^ words) * np.uint64(0x9E3779B97F4A7C15)
    return mixed ^ (mixed >> np.uint64(29))


def open_dictionary(path: Path, graph: KnowledgeGraph) -> NameIndex:
    """Open the dictionary of a graph; where there is none yet, make and publish it."""
    if not (path / "dictionary.json").is_file():
        with published_directory(path, DICTIONARY) as directory:
            for name, column in _columns(graph).items():
                np.save(directory / f"{name}.npy", column, allow_pickle=False)
            write_json(directory / "dictionary.json", _description(graph))
    return NameIndex(path, graph)


def _description(graph: KnowledgeGraph) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, "graph_fingerprint": graph.fingerprint}


def _columns(graph: KnowledgeGraph) -> dict[str, NDArray[Any]]:
    batches = list(_paths(graph))
    empty = np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.bool_), np.empty(0, np.uint64)
    paths, names, acronyms, inner = (np.concatenate(parts) for parts in zip(empty, *batches, strict=True))
    if not len(paths):
        raise InputError(f"{graph.path}: has no names to look for in texts; build the graph with names, or --link gold")
    keys = np.unique(np.concatenate([paths, inner]))
    concepts = np.searchsorted(graph.name_offsets, names, side="right") - 1
    preferred = graph.name_offsets[concepts] == names
    order = np.lexsort((concepts, paths))
    paths, concepts = paths[order], concepts[order]
    firsts = np.flatnonzero(np.append(True, (paths[1:] != paths[:-1]) | (concepts[1:] != concepts[:-1])))
    paths, concepts = paths[firsts], concepts[firsts]
    preferred = np.logical_or.reduceat(preferred[order], firsts)
    acronyms = np.logical_and.reduceat(acronyms[order], firsts)
    degrees = graph.edge_offsets[concepts + 1].astype(np.int64) - graph.edge_offsets[concepts]
    order = np.lexsort((concepts, -degrees, ~preferred, paths))
    return {
        "keys": keys,
        "extends": np.isin(keys, inner),
        "offsets": np.append(np.searchsorted(paths, keys), len(paths)),
        "concepts": concepts[order].astype(np.int32),
        "preferred": preferred[order],
        "acronyms": acronyms[order],
    }


def _paths(graph: KnowledgeGraph) -> Iterator[tuple[_Hashes, NDArray[np.int64], NDArray[np.bool_], _Hashes]]:
    """Yield (whole paths, name ids, acronyms?, paths of proper beginnings) for the names of the graph, in batches."""
    hasher = WordHasher()
    for start in range(0, graph.num_names, _BATCH):
        numbers, hashes, lengths, acronyms = [], [], [], []
        for number in range(start, min(start + _BATCH, graph.num_names)):
            words = split_words(graph.name(number)).texts
            if 0 < len(words) <= LONGEST_NAME and not is_stop_name(words):
                numbers.append(number)
                hashes += hasher(words)
                lengths.append(len(words))
                acronyms.append(is_acronym(words))
        if not numbers:
            continue
        flat, counts = np.array(hashes, np.uint64), np.array(lengths)
        at = np.cumsum(counts) - counts
        paths, inner = np.zeros(len(counts), np.uint64), []
        for length in range(LONGEST_NAME):
            longer = np.flatnonzero(counts > length)
            if length:
                inner.append(paths[longer])
            paths[longer] = extend(paths[longer], flat[at[longer] + length])
        yield paths, np.array(numbers), np.array(acronyms), np.unique(np.concatenate(inner))
