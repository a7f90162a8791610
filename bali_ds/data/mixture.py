"""One shard set or several, read as one: sample rows and tars count through them in the order given."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.data.remote import open_shards
from bali_ds.data.sequences import Ints
from bali_ds.errors import InputError
from bali_ds.shards.neighbor_settings import NeighborSettings
from bali_ds.shards.shard_index import read_index
from bali_ds.shards.shard_set import Names, Shard, ShardSet, ShardSource

# The order of samples repeats in rounds of the sum of the proportions; finer ones would make no visible difference.
_LARGEST_PROPORTION = 10_000


class Mixture:
    """Shard sets of one graph and one tokenizer, mixed in fixed proportions.

    Args:
        sets: the shard sets.
        proportions: passages of each set among every `sum(proportions)` of the order.

    Attributes:
        sets, proportions: as given.
        name: where the sets lie.
        fingerprint: that of a single set, otherwise a hash over all sets and proportions.
        index: the index of the first set; the entries that the loader reads are the same in all.
        names: the table of tokenized names, which all share.
        shards: the tars of all sets.
        starts: int64 [sets + 1], the first sample row of each set.

    Raises:
        InputError: the sets were built from different graphs, with different tokenizers or with other facts.
    """

    def __init__(self, sets: Sequence[ShardSet], proportions: Sequence[int] = (1,)) -> None:
        self.sets, self.proportions = tuple(sets), tuple(proportions)
        _check_proportions(self.proportions)
        _check_alike(self.sets)
        self.name = " + ".join(str(each.path) for each in self.sets)
        self.fingerprint = self.sets[0].fingerprint if len(self.sets) == 1 else self._combined_fingerprint()
        self.index = self.sets[0].index
        self.shards: tuple[Shard, ...] = tuple(shard for each in self.sets for shard in each.shards)
        self.starts = _boundaries([len(each.samples) for each in self.sets])
        self._first_tars = _boundaries([len(each.shards) for each in self.sets])

    @classmethod
    def of(cls, shards: "ShardSet | Mixture") -> "Mixture":
        """Return a single shard set as a mixture."""
        return shards if isinstance(shards, Mixture) else cls([shards])

    @property
    def names(self) -> Names:
        """The table of tokenized names."""
        return self.sets[0].names

    def size(self, split: str) -> int:
        """Return the number of samples of "train" or "validation"."""
        return sum(len(each.split(split)) for each in self.sets)

    def split(self, name: str) -> Ints:
        """Return the sample rows of "train" or "validation", set by set, int64 [n]."""
        return np.concatenate([self.rows_of(number, name) for number in range(len(self.sets))])

    def rows_of(self, number: int, split: str) -> Ints:
        """Return the rows of one set's split, which follow each other, int64 [n]."""
        rows = self.sets[number].split(split)
        return np.arange(rows.start, rows.stop) + self.starts[number]

    def set_numbers(self, rows: Ints) -> Ints:
        """Return which set holds each sample row, int64 [n]."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def shard_numbers(self, rows: Ints) -> Ints:
        """Return which of `shards` holds each sample row, int64 [n]."""
        if len(self.sets) == 1:
            return self.sets[0].shard_numbers(rows)
        numbers = np.empty(rows.size, np.int64)
        for each, held in self._by_set(rows):
            numbers[held] = self._first_tars[each] + self.sets[each].shard_numbers(rows[held] - self.starts[each])
        return numbers

    def samples(self, rows: Ints) -> NDArray[np.void]:
        """Return rows of the sample tables, SAMPLE_DTYPE [n]."""
        if len(self.sets) == 1:
            return np.asarray(self.sets[0].samples[rows])
        table = np.empty(rows.size, self.sets[0].samples.dtype)
        for each, held in self._by_set(rows):
            table[held] = self.sets[each].samples[rows[held] - self.starts[each]]
        return table

    def set_of_tar(self, number: int) -> ShardSet:
        """Return the set that one of `shards` belongs to."""
        return self.sets[int(np.searchsorted(self._first_tars, number, side="right")) - 1]

    def tar(self, number: int) -> Path:
        """Return where one of `shards` lies."""
        return self.set_of_tar(number).path / self.shards[number].name

    def key(self, row: int) -> str:
        """Return the key of a sample, read off its first tar header."""
        each, own_row = self._at(row)
        return each.key(own_row)

    def arrays(self, row: int) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int32]]:
        """Return tokens [T], mentions [M, 3] and edges [E, 3] of a sample, read plainly: for tools and tests."""
        each, own_row = self._at(row)
        return each.arrays(own_row)

    def _at(self, row: int) -> tuple[ShardSet, int]:
        number = int(self.set_numbers(np.array([row]))[0])
        return self.sets[number], row - int(self.starts[number])

    def _by_set(self, rows: Ints) -> list[tuple[int, Ints]]:
        """The sets that hold any of the rows, each with the places of those it holds."""
        numbers = self.set_numbers(rows)
        return [(each, np.flatnonzero(numbers == each)) for each in np.unique(numbers).tolist()]

    def _combined_fingerprint(self) -> str:
        parts = [f"{share} {each.fingerprint}\n" for each, share in zip(self.sets, self.proportions, strict=True)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def open_mixture(shards: str | Path | Mapping[str, int]) -> Mixture:
    """Open what a recipe names as shards: one location, or several with the proportion of each.

    Raises:
        InputError: a location holds no shards, or they do not go together.
    """
    if not isinstance(shards, Mapping):
        return Mixture([open_shards(shards)])
    return Mixture([open_shards(location) for location in shards], tuple(shards.values()))


def parts_of(mixture: Mixture) -> list[tuple[str, ShardSource | None, int]]:
    """Return the directory, source and proportion of each set: what another process of the node opens it with."""
    return [
        (str(each.path), each.source, proportion)
        for each, proportion in zip(mixture.sets, mixture.proportions, strict=True)
    ]


def open_parts(parts: Sequence[tuple[str, Sequence[Any] | None, int]]) -> Mixture:
    """Open again what `parts_of` returned, perhaps through JSON; the sizes of tars were checked before."""
    sets = [
        ShardSet(Path(path), read_index(Path(path)), ShardSource(*source) if source else None)
        for path, source, _ in parts
    ]
    return Mixture(sets, [proportion for *_, proportion in parts])


def _boundaries(sizes: list[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _check_proportions(proportions: tuple[int, ...]) -> None:
    if not proportions or min(proportions) < 1 or sum(proportions) > _LARGEST_PROPORTION:
        raise InputError(
            f"proportions {', '.join(map(str, proportions))}: take whole numbers from 1 on with a sum of at most "
            f"{_LARGEST_PROPORTION}"
        )


def _neighbors(shards: ShardSet) -> str:
    """Which facts are stored, and sampled for concepts that no passage mentions, by the options of `shards build`."""
    return str(NeighborSettings.of_index(shards.index).describe() or "default")


def _check_alike(sets: tuple[ShardSet, ...]) -> None:
    first = sets[0]
    for other in sets[1:]:
        for what, ours, theirs in (
            ("the graph", first.index["graph_fingerprint"], other.index["graph_fingerprint"]),
            ("tokenizer", first.index["tokenizer"]["fingerprint"], other.index["tokenizer"]["fingerprint"]),
            ("--max-name-tokens", first.index["max_name_tokens"], other.index["max_name_tokens"]),
            ("neighbors of the settings", _neighbors(first), _neighbors(other)),
        ):
            if ours != theirs:
                raise InputError(
                    f"{other.path}: was built with {what} {theirs}, but {first.path} with {ours}; "
                    "shards that are mixed need the same"
                )
