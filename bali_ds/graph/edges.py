"""Collection of facts from all sources and their conversion to adjacency lists."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bali_ds.errors import InputError, suggestion
from bali_ds.graph.identifiers import IdentifierIndex, join_vocabularies
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

    def where(self, kept: NDArray[np.bool_]) -> "FactTable":
        """Return the facts at which a mask, bool [E], is true."""
        return FactTable(self.heads[kept], self.labels[kept], self.tails[kept], self.sources[kept])

    def distinct(self) -> "FactTable":
        """Return each fact once, in any order."""
        frame = pl.DataFrame(vars(self)).unique()
        return FactTable(**{name: frame[name].to_numpy() for name in frame.columns})


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
        sums = _MirrorSums()
        parts = []
        for frame in source.relations():
            part = self._encoded(frame, counts)
            sums.add(part)
            parts.append(part.distinct())
        facts = FactTable.join(parts)
        if source.mirrored:
            names = list(self.labels)
            present = {names[label] for label in np.unique(facts.labels)}
            pairs = pair_up(present, source.inverses())
            pairs |= sums.pairs({name: self.labels[name] for name in sorted(present - set(pairs))})
            self.inverses |= {name: partner for name, partner in pairs.items() if inverse_name(partner) != name}
            self._canonicalize(facts, pairs)
        self._parts.append(facts)

    def finish(self, num_concepts: int) -> FactTable:
        """Return the distinct facts of all sources.

        A fact that one source states by a relation and another by its inverse is one fact, and so is one that several
        sources state: its source is their names, joined by bars.

        Raises:
            InputError: there are too many concepts, relations or sources for 64-bit sort keys.
        """
        facts = self._parts.pop() if len(self._parts) == 1 else FactTable.join(self._parts)
        self._parts.clear()
        pairs = pair_up(self.labels)
        self._canonicalize(facts, {name: partner for name, partner in pairs.items() if name != partner})
        return _join_sources(facts, len(self.labels), self.sources, num_concepts)

    def _encoded(self, frame: pl.DataFrame, counts: Counter[str]) -> FactTable:
        heads, tails = (self._index.find(frame[end]) for end in ("head", "tail"))
        unknown = (heads < 0) | (tails < 0)
        loops = (heads == tails) & ~unknown
        counts["relations of unknown concepts"] += int(unknown.sum())
        counts["self-relations"] += int(loops.sum())
        kept = ~(unknown | loops)
        labels, sources = self.labels.encode(frame["relation"]), self.sources.encode(frame["source"])
        return FactTable(heads[kept], labels[kept], tails[kept], sources[kept])

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


class _MirrorSums:
    """Sums of the hashes of each relation's facts modulo 2**64, forwards and backwards."""

    def __init__(self) -> None:
        self._forward = self._backward = np.zeros(0, np.uint64)

    def add(self, facts: FactTable) -> None:
        missing = int(facts.labels.max(initial=-1)) + 1 - self._forward.size
        if missing > 0:
            grow = np.zeros(missing, np.uint64)
            self._forward, self._backward = np.append(self._forward, grow), np.append(self._backward, grow)
        np.add.at(self._forward, facts.labels, _hash(facts.heads, facts.tails, facts.sources))
        np.add.at(self._backward, facts.labels, _hash(facts.tails, facts.heads, facts.sources))

    def pairs(self, labels: dict[str, int]) -> dict[str, str]:
        """Pair relations whose facts are, source by source, the reversed facts of the other."""
        unpaired: dict[tuple[int, int], list[str]] = {}
        pairs: dict[str, str] = {}
        for name, label in labels.items():
            sums = int(self._forward[label]), int(self._backward[label])
            partners = unpaired.get(sums[::-1], [])
            if sums[0] == sums[1]:
                pairs[name] = name
            elif partners:
                partner = partners.pop(0)
                pairs[name], pairs[partner] = partner, name
            else:
                unpaired.setdefault(sums, []).append(name)
        return pairs


def without_pairs(facts: FactTable, pairs: NDArray[np.int32]) -> FactTable:
    """Return the facts that are not between the two concept ids of a pair, int32 [n, 2], in either direction."""
    return facts.where(~np.isin(_pairs(facts.heads, facts.tails), _pairs(pairs[:, 0], pairs[:, 1])))


def _pairs(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.minimum(first, second).astype(np.int64) << 32 | np.maximum(first, second)


def _join_sources(facts: FactTable, num_labels: int, sources: StringIds, num_concepts: int) -> FactTable:
    """Return distinct facts; one that several sources state gets a source of its own, added to `sources`."""
    if not facts.heads.size:
        return facts
    sizes = (num_labels, num_concepts, len(sources))
    if num_concepts * math.prod(sizes) >= 2**64:
        raise InputError(f"{num_concepts} concepts with {num_labels} relations exceed the limits of a graph")
    keys = facts.heads.astype(np.uint64)
    for size, column in zip(sizes, (facts.labels, facts.tails, facts.sources), strict=True):
        keys *= np.uint64(size)
        keys += column.astype(np.uint64)
    keys.sort()
    keys = keys[np.append(True, keys[1:] != keys[:-1])]
    statements, stated_by = np.divmod(keys, np.uint64(len(sources)))
    firsts = np.flatnonzero(np.append(True, statements[1:] != statements[:-1]))
    counts = np.diff(np.append(firsts, keys.size))
    source_ids = stated_by[firsts].astype(np.int32)
    names = list(sources)
    for count in np.unique(counts[counts > 1]).tolist():
        rows = np.flatnonzero(counts == count)
        groups, which = np.unique(stated_by[firsts[rows][:, None] + np.arange(count)], axis=0, return_inverse=True)
        joined = [join_vocabularies(names[each] for each in group) for group in groups.tolist()]
        ids = np.array([sources.setdefault(name, len(sources)) for name in joined], np.int32)
        source_ids[rows] = ids[which.ravel()]
    rest, tails = np.divmod(statements[firsts], np.uint64(num_concepts))
    heads, labels = np.divmod(rest, np.uint64(num_labels))
    return FactTable(*(column.astype(np.int32) for column in (heads, labels, tails, source_ids)))


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
    limits = max(2 * len(relation_names), len(used_sources))
    if limits > 2**16 or 2 * len(spelled) * num_concepts**2 >= 2**64:
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


def of_relations(
    facts: FactTable, labels: StringIds, inverses: Mapping[str, str], names: Sequence[str]
) -> NDArray[np.bool_]:
    """Return bool [E], whether the relation of each fact, or its inverse, has one of these names.

    Args:
        facts: the facts.
        labels: ids of relation names.
        inverses: names of relations read from their tails, where they differ from `inverse_name`.
        names: the names to find.

    Raises:
        InputError: no fact has a relation of one of the names; the most similar name is suggested.
    """
    spellings = [(label, inverses.get(label, inverse_name(label))) for label in labels]
    present = {name for label in np.unique(facts.labels).tolist() for name in spellings[label]}
    for name in names:
        if name not in present:
            raise InputError(f"relation {name}: is not in the sources; {suggestion(name, present)}")
    wanted = np.array([bool(set(names).intersection(both)) for both in spellings], bool)
    return wanted[facts.labels]
