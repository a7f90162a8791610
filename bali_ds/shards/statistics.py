"""What a shard set holds, in numbers."""

from pathlib import Path
from typing import Any

import numpy as np

from bali_ds.shards.store import ShardSet

_COUNTS = ("documents", "passages", "mentions", "linked_mentions", "concepts")


def statistics(path: Path) -> dict[str, Any]:
    """Return the counts of a shard set, read off its index and sample table.

    `documents` and `mentions` count what was read, `passages` what is stored, `linked_mentions` the stored mentions
    of concepts of the graph, `concepts` the distinct ones.
    """
    shards = ShardSet.open(path)
    samples = shards.samples
    counts = shards.index["counts"]
    values: dict[str, Any] = {name: counts[name] for name in _COUNTS if name in counts}
    values["shards"] = len(shards.shards)
    values["train_passages"], values["validation_passages"] = (
        len(shards.split(split)) for split in ("train", "validation")
    )
    for name in ("tokens", "views", "edges"):
        mean = float(np.mean(samples[name])) if len(samples) else 0.0
        values[f"{name}_per_passage"] = round(mean, 2)
    values["names"] = len(shards.names.offsets) - 1
    values["bytes"] = sum(shard.bytes for shard in shards.shards)
    values["tokenizer"] = shards.index["tokenizer"]["name"]
    values["graph_fingerprint"] = shards.index["graph_fingerprint"]
    values["fingerprint"] = shards.fingerprint
    return values
