"""Which sample each position of a run visits: sets mixed in fixed proportions, each in its own endless order.

Positions are counted from the start of the run, through all epochs. They are cut into rounds, in each of which every
set has its exact share in an order of its own; the i-th position of a set in the run visits entry i % n of epoch
i // n of that set, whose order is that of `EpochOrder`. Every step of this is arithmetic, so any position is found at
once, and a set alone is in its own order.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bali_ds.errors import InputError
from bali_ds.randomness import derive, permute
from bali_ds.stream.mixture import Mixture
from bali_ds.stream.order import EpochOrder, epoch_order
from bali_ds.stream.ragged import Ints, starts
from bali_ds.stream.settings import StreamSettings
from bali_ds.stream.weighting import WeightedVisits, weighted_visits

# Proportions hold exactly in rounds of at least so many positions, few enough to hold in every batch nearly.
_ROUND = 256
# A weighted epoch may visit a sample again; what is drawn for it then must differ.
_AGAIN = 1 << 32


class Visits(NamedTuple):
    """Samples, and what tells one visit of a sample from another.

    Attributes:
        rows: int64 [n], rows of the mixture.
        occasions: int64 [n]: the epoch of the sample's set, plus 2**32 for each earlier visit in that epoch.
    """

    rows: Ints
    occasions: Ints


class VisitOrder:
    """The visits of a run, a function of the fingerprints, the seed and the proportions.

    Args:
        mixture: the sets.
        settings: seed, window, split and temperature.

    Attributes:
        size: samples of all sets, and positions of an epoch of the run.
    """

    def __init__(self, mixture: Mixture, settings: StreamSettings) -> None:
        self._mixture, self._settings = mixture, settings
        self._sizes = [len(each.split(settings.split)) for each in mixture.sets]
        self.size = sum(self._sizes)
        self._check_sizes()
        repeats = -(-_ROUND // sum(mixture.proportions))
        self._shares = np.array(mixture.proportions, np.int64) * repeats
        self._key = derive(mixture.fingerprint, settings.seed, "mixture")
        self._order = lru_cache(4 * len(mixture.sets))(self._epoch_order)
        self._weighted: tuple[WeightedVisits, ...] = ()
        if settings.temperature != 1:
            self._weighted = tuple(
                weighted_visits(mixture, number, settings.split, settings.temperature)
                for number in range(len(mixture.sets))
            )

    def visits(self, positions: Ints) -> Visits:
        """Return the visits at positions of the run, int64 [n]: epoch * size + samples seen in the epoch."""
        if len(self._sizes) == 1:
            return self._visits_of_set(0, positions)
        numbers, places = self._mixed(positions)
        rows, occasions = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(numbers).tolist():
            held = numbers == number
            rows[held], occasions[held] = self._visits_of_set(number, places[held])
        return Visits(rows, occasions)

    def _mixed(self, positions: Ints) -> tuple[Ints, Ints]:
        """Which set each position takes, and how many positions before took the same."""
        length = int(self._shares.sum())
        rounds, within = np.divmod(positions, length)
        slots = permute(within, length, derive(self._key, rounds))
        numbers = np.searchsorted(np.cumsum(self._shares), slots, side="right")
        return numbers, rounds * self._shares[numbers] + slots - starts(self._shares)[numbers]

    def _visits_of_set(self, number: int, places: Ints) -> Visits:
        epochs, entries = np.divmod(places, self._sizes[number])
        rows, occasions = np.empty_like(places), epochs.copy()
        for epoch in np.unique(epochs).tolist():
            held = epochs == epoch
            rows[held] = self._order(number, epoch).rows(entries[held])
            if self._weighted:
                key = derive(self._mixture.sets[number].fingerprint, self._settings.seed, epoch, "weights")
                rows[held], earlier = self._weighted[number].take(rows[held], key)
                occasions[held] += _AGAIN * earlier
        return Visits(rows + self._first_row(number), occasions)

    def _first_row(self, number: int) -> int:
        each = self._mixture.sets[number]
        return int(self._mixture.starts[number]) + each.split(self._settings.split).start

    def _epoch_order(self, number: int, epoch: int) -> EpochOrder:
        settings = self._settings
        return epoch_order(self._mixture.sets[number], settings.split, settings.seed, epoch, settings.window)

    def _check_sizes(self) -> None:
        for each, size in zip(self._mixture.sets, self._sizes, strict=True):
            if not size:
                raise InputError(f"{each.path}: has no {self._settings.split} samples")
