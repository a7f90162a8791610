"""The record of bad samples, and the point at which there are too many."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bali_ds.errors import InputError
from bali_ds.stream.mixture import Mixture
from bali_ds.stream.soundness import NOT_FOUND, Replacement

logger = logging.getLogger(__name__)

# A share means nothing among a handful of samples: so many are taken as seen from the start.
_FIRST_SAMPLES = 1000


class Quarantine:
    """Counts the bad samples of one rank and writes them down.

    Args:
        shards: where they come from.
        path: file to append to, one JSON object a line: step (since the loader was made), shard, row, key, reason,
            replaced_by. None writes nothing.
        limit: share of samples that may be bad.
    """

    def __init__(self, shards: Mixture, path: Path | None, limit: float) -> None:
        self._shards, self._path, self._limit = shards, path, limit
        self._seen = self._bad = 0

    def record(self, step: int, samples: int, replaced: Sequence[Replacement]) -> None:
        """Take note of a step's samples.

        Raises:
            InputError: too many samples so far were bad.
        """
        self._seen += samples
        if not replaced:
            return
        self._bad += len(replaced)
        entries = [self._entry(step, replacement) for replacement in replaced]
        for entry in entries:
            logger.warning("%(shard)s: sample %(row)s (%(key)s) is left out: %(reason)s", entry)
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(entry) + "\n" for entry in entries)
        if self._bad > self._limit * max(self._seen, _FIRST_SAMPLES):
            raise InputError(
                f"{self._shards.name}: {self._bad} of {self._seen} samples were bad, more than a share of "
                f"{self._limit}; see {self._path or 'the warnings above'}, and: bali-ds shards lint"
            )

    def _entry(self, step: int, replacement: Replacement) -> dict[str, object]:
        number = int(self._shards.shard_numbers(np.array([replacement.row]))[0])
        return {
            "step": step,
            "shard": str(self._shards.tar(number)),
            "row": replacement.row,
            "key": None if replacement.reason == NOT_FOUND else self._shards.key(replacement.row),
            "reason": replacement.reason,
            "replaced_by": replacement.by,
        }
