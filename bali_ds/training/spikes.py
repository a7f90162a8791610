"""Tells a loss that jumped from one that merely wavers."""

import statistics
from collections import deque

WINDOW = 100
_FEWEST = 30
# The median absolute deviation of a normal distribution is this much of its standard deviation.
_NORMAL = 0.6745


class SpikeDetector:
    """Compares each loss with the median of those before it, in units of their deviation from it."""

    def __init__(self, deviations: float) -> None:
        """Call a loss a spike when it lies `deviations` above; 0 calls none so."""
        self._deviations = deviations
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def jumped(self, loss: float) -> bool:
        """Return whether this loss is a spike; one that is none counts for those to come."""
        if self._deviations and len(self._losses) >= _FEWEST:
            median = statistics.median(self._losses)
            deviation = statistics.median(abs(each - median) for each in self._losses) / _NORMAL
            # losses that hardly differ would make a spike of nothing
            if loss - median > self._deviations * max(deviation, 0.01 * abs(median)):
                return True
        self._losses.append(loss)
        return False
