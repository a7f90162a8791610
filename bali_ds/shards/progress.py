"""One line on standard error that tells how far a build is."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm


class Progress:
    """A bar over the bytes of the inputs, with documents a second; updated as parts are done."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._documents = 0
        self._start = time.monotonic()
        self._bar = tqdm(
            total=sum(sizes), unit="B", unit_scale=True, desc="documents", dynamic_ncols=True, mininterval=0.5
        )

    def done(self, number: int, part: Path) -> None:
        """Count the part of one input."""
        if part.is_dir():
            self._documents += len(np.load(part / "documents.npy", mmap_mode="r", allow_pickle=False))
        rate = self._documents / max(time.monotonic() - self._start, 1e-9)
        self._bar.set_postfix_str(f"{self._documents} documents, {rate:.0f}/s", refresh=False)
        self._bar.update(self._sizes[number])

    def close(self) -> None:
        """Leave the line as it is."""
        self._bar.close()
