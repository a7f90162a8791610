"""What the measures ask of an encoder."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Encodes(Protocol):
    """Whatever turns strings into unit vectors."""

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> NDArray[np.float32]:
        """Return float32 [n, d]."""
        ...

    def encode_mentions(self, places: Sequence[tuple[str, int, int]]) -> NDArray[np.float32]:
        """Return float32 [n, d], the vector of each mention in its text."""
        ...
