"""The steps' samples that a run leaves out, remembered over restarts so that a resumed run leaves out the same."""

import json
from dataclasses import asdict
from pathlib import Path

from bali_ds.stream.order import Position
from bali_ds.training.cluster import Cluster

NON_FINITE = "non-finite"
SPIKE = "spike"


class LeftOut:
    """`left_out.jsonl` of a run; a step's samples are named by the position after them."""

    def __init__(self, run: Path, cluster: Cluster) -> None:
        self._path, self._cluster = run / "left_out.jsonl", cluster
        lines = self._path.read_text(encoding="utf-8").splitlines() if cluster.first and self._path.exists() else []
        self._reasons: dict[Position, str] = {}
        for line in cluster.agree(lines):
            entry = json.loads(line)
            self._reasons[Position(entry["epoch"], entry["samples_seen"])] = entry["reason"]

    def __contains__(self, position_after: Position) -> bool:
        return position_after in self._reasons

    def count(self, reason: str) -> int:
        """Return how many steps' samples were left out for this reason."""
        return sum(each == reason for each in self._reasons.values())

    def add(self, position_after: Position, reason: str) -> None:
        """Leave these samples out from now on; every rank calls this."""
        self._reasons[position_after] = reason
        if self._cluster.first:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({**asdict(position_after), "reason": reason}) + "\n")
