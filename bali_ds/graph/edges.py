"""Collection of facts from all sources and their conversion to adjacency lists."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.graph.identifiers import IdentifierIndex
from bali_ds.graph.packed_adjacency import pack_adjacency
from bali_ds.graph.relations import canonical, inverse_name, pair_up
from bali_ds.graph.source import Source


class StringIds(dict[str, int]):
    """Ids of distinct strings, in order of first occurrence."""

    def encode(self, strings: pl.Series) -> NDArray[np.int32]:
        """Return the id of each string, int32; new strings get the next ids."""
        distinct = strings.unique()
        ids = pl.Series([self.setdefault(string, len(self)) for string in distinct], dtype=pl.Int32)
        return strings.replace_strict(distinct, ids).cast(pl.Int32).to_numpy()


@dataclass
class FactTable:
    """E facts as int32 columns: concept ids of heads and tails, ids of relation names (labels) and of sources."""

    heads: NDArray[np.int32]
    labels: NDArray[np.int32]
    tails: NDArray[np.int32]
    sources: NDArray[np.int32]

    @staticmethod
    def join(parts: "list[FactTable]") -> "FactTable":
        """Return the facts of all parts."""
        nothing = [np.zeros(0, np.int32)]
        return FactTable(
            *(
                np.concatenate([getattr(part, name) for part in parts] or nothing)
                for name in ("heads", "labels", "tails", "sources")
            )
        )


class FactCollector:
    """Collects facts between known concepts and merges the two directions of each fact.

    Attributes:
        labels: ids of relation names.
        sources: ids of source names.
        inverses: inverse names that are inferred from the data alone, by relation name.
    """

    def __init__(self, index: IdentifierIndex) -> None:
        self.labels = StringIds()
        self.sources = StringIds()
        self.inverses: dict[str, str] = {}
        self._index = index
        self._parts: list[FactTable] = []

    def add(self, source: Source, counts: Counter[str]) -> None:
        """Read all facts of a source; drop and count those with an unknown end or with equal ends."""
        facts = FactTable.join([self._encoded(frame, counts) for frame in source.relations()])
        if source.mirrored:
            names = list(self.labels)
            present = {names[label] for label in np.unique(facts.labels)}
            pairs = pair_up(present, source.inverses())
            pairs |= self._mirrored(facts, present - set(pairs))
            self.inverses |= {name: partner for name, partner in pairs.items() if inverse_name(partner) != name}
            self._canonicalize(facts, pairs)
        self._parts.append(facts)

    def finish(self, held_out: NDArray[np.int32]) -> tuple[FactTable, int]:
        """Return all facts and the number of held-out facts.

        A fact that one source states by a relation and another by its inverse is one fact.

        Args:
            held_out: int32 [n, 2], pairs of concept ids; facts between the two are dropped, in either direction.
        """
        facts = self._parts.pop() if len(self._parts) == 1 else FactTable.join(self._parts)
        self._parts.clear()
        pairs = pair_up(self.labels)
        self._canonicalize(facts, {name: partner for name, partner in pairs.items() if name != partner})
        if not held_out.size:
            return facts, 0
        kept = ~np.isin(_pairs(facts.heads, facts.tails), _pairs(held_out[:, 0], held_out[:, 1]))
        columns = (facts.heads, facts.labels, facts.tails, facts.sources)
        return FactTable(*(column[kept] for column in columns)), int((~kept).sum())

    def _encoded(self, frame: pl.DataFrame, counts: Counter[str]) -> FactTable:
        heads, tails = (self._index.find(frame[end]) for end in ("head", "tail"))
        unknown = (heads < 0) | (tails < 0)
        loops = (heads == tails) & ~unknown
        counts["relations of unknown concepts"] += int(unknown.sum())
        counts["self-relations"] += int(loops.sum())
        kept = ~(unknown | loops)
        labels, sources = self.labels.encode(frame["relation"]), self.sources.encode(frame["source"])
        return FactTable(heads[kept], labels[kept], tails[kept], sources[kept])

    def _mirrored(self, facts: FactTable, names: set[str]) -> dict[str, str]:
        """Pair relations whose facts are, source by source, the reversed facts of the other.

        Sets of facts are compared by the sum of their hashes modulo 2**64, forwards and backwards.
        """
        forward, backward = (np.zeros(len(self.labels), np.uint64) for _ in range(2))
        np.add.at(forward, facts.labels, _hash(facts.heads, facts.tails, facts.sources))
        np.add.at(backward, facts.labels, _hash(facts.tails, facts.heads, facts.sources))
        unpaired: dict[tuple[int, int], list[str]] = {}
        pairs: dict[str, str] = {}
        for name in sorted(names):
            sums = int(forward[self.labels[name]]), int(backward[self.labels[name]])
            partners = unpaired.get(sums[::-1], [])
            if sums[0] == sums[1]:
                pairs[name] = name
            elif partners:
                partner = partners.pop(0)
                pairs[name], pairs[partner] = partner, name
            else:
                unpaired.setdefault(sums, []).append(name)
        return pairs

    def _canonicalize(self, facts: FactTable, pairs: dict[str, str]) -> None:
        """Reverse facts in place so that only the canonical one of two inverse relation names remains."""
        new = np.arange(len(self.labels), dtype=np.int32)
        symmetric = np.zeros(len(self.labels), bool)
        for name, partner in pairs.items():
            new[self.labels[name]] = self.labels[canonical(name, partner)]
            symmetric[self.labels[name]] = name == partner
        flipped = new[facts.labels] != facts.labels
        flipped |= symmetric[facts.labels] & (facts.heads > facts.tails)
        facts.heads[flipped], facts.tails[flipped] = facts.tails[flipped], facts.heads[flipped]
        facts.labels = new[facts.labels]


def _pairs(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.minimum(first, second).astype(np.int64) << 32 | np.maximum(first, second)


def _hash(*columns: NDArray[np.int32]) -> NDArray[np.uint64]:
    state = np.zeros(columns[0].size, np.uint64)
    for column in columns:
        state = (state ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        state ^= state >> np.uint64(29)
    return state * np.uint64(0xBF58476D1CE4E5B9) ^ (state >> np.uint64(32))


@dataclass(frozen=True)
class AdjacencyLists:
    """Adjacency lists of a graph as they are stored.

    Attributes:
        offsets: uint32 or int64 [C + 1].
        words: uint64, as `pack_adjacency` returns them.
        kind_relations: uint16 [K], the relation id of each kind.
        kind_sources: uint8 or uint16 [K], the source of each kind.
        relation_names: by relation id.
        source_names: by source.
    """

    offsets: NDArray[Any]
    words: NDArray[np.uint64]
    kind_relations: NDArray[np.uint16]
    kind_sources: NDArray[Any]
    relation_names: list[str]
    source_names: list[str]


def adjacency_lists(facts: FactTable, labels: StringIds, sources: StringIds, num_concepts: int) -> AdjacencyLists:
    """Return the adjacency lists of distinct facts, each sorted by relation, source and neighbor.

    Raises:
        InputError: there are too many concepts or relations for 64-bit sort keys or 16-bit relation ids.
    """
    paired = facts.labels.astype(np.int64) * len(sources) + facts.sources
    label_names, source_names = list(labels), list(sources)
    present = np.flatnonzero(np.bincount(paired, minlength=1))
    spelling = {int(pair): (label_names[pair // len(sources)], source_names[pair % len(sources)]) for pair in present}
    spelled = sorted(spelling.values())
    rank = np.zeros(present[-1] + 1 if present.size else 1, np.int32)
    rank[present] = [spelled.index(spelling[pair]) for pair in present.tolist()]
    relation_names = sorted({label for label, _ in spelled})
    used_sources = sorted({source for _, source in spelled})
    if 2 * len(relation_names) > 2**16 or 2 * len(spelled) * num_concepts**2 >= 2**64:
        raise InputError(f"{num_concepts} concepts with {len(relation_names)} relations exceed the limits of a graph")
    rows, kind, targets = _both_ends(facts.heads, rank[paired], facts.tails, len(spelled), num_concepts)
    offsets = np.searchsorted(rows, np.arange(num_concepts + 1, dtype=np.int32))
    relation_of = np.array([relation_names.index(label) for label, _ in spelled], np.uint16)
    source_of = np.array([used_sources.index(source) for _, source in spelled], np.min_scalar_type(len(used_sources)))
    return AdjacencyLists(
        offsets.astype(np.uint32 if rows.size < 2**32 else np.int64),
        pack_adjacency(kind, targets, len(spelled), num_concepts),
        relation_of,
        source_of,
        relation_names,
        used_sources,
    )


def _both_ends(
    heads: NDArray[np.int32], kinds: NDArray[np.int32], tails: NDArray[np.int32], num_kinds: int, num_concepts: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Return both ends of each distinct fact as sorted (concept, kind, neighbor); inverse kinds start at num_kinds."""

    def join(rows: NDArray[Any], kinds: NDArray[Any], neighbors: NDArray[Any]) -> NDArray[np.uint64]:
        keys = rows.astype(np.uint64)
        keys *= np.uint64(2 * num_kinds)
        keys += kinds.astype(np.uint64)
        keys *= np.uint64(num_concepts)
        keys += neighbors.astype(np.uint64)
        keys.sort()
        return keys

    def split(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        neighbors = (keys % np.uint64(num_concepts)).astype(np.int32)
        keys = keys // np.uint64(num_concepts)
        kinds = (keys % np.uint64(2 * num_kinds)).astype(np.int32)
        return (keys // np.uint64(2 * num_kinds)).astype(np.int32), kinds, neighbors

    if not heads.size:
        return heads, kinds, tails
    keys = join(heads, kinds, tails)
    heads, kinds, tails = split(keys[np.concatenate([[True], keys[1:] != keys[:-1]])])
    del keys
    return split(
        join(
            np.concatenate([heads, tails]),
            np.concatenate([kinds, kinds + np.int32(num_kinds)]),
            np.concatenate([tails, heads]),
        )
    )
