"""Batches for evaluation: nothing masked, rows in order."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from bali_ds.graph.store import KnowledgeGraph
from bali_ds.shards.store import ShardSet
from bali_ds.stream.batch import Batch
from bali_ds.stream.collation import Collator
from bali_ds.stream.loader import as_batch
from bali_ds.stream.settings import StreamSettings


def evaluation_batches(
    shards: ShardSet,
    graph: KnowledgeGraph,
    settings: StreamSettings,
    *,
    split: str = "validation",
    batch_size: int = 64,
    limit: int | None = None,
) -> Iterator[Batch]:
    """Yield unmasked batches of a split in the order of the sample table, the last one perhaps smaller.

    Neighbours and synonyms are those of epoch 0, so every call yields the same batches. Another sample stands in for
    a bad one.

    Args:
        shards: the samples.
        graph: the graph that the shards were built from.
        settings: seed, fan-out and blocks; the masking shares do not matter.
        split: "train" or "validation".
        batch_size: samples a batch.
        limit: samples in all; None takes the whole split.

    Raises:
        InputError: the graph is another one, or a shard cannot be read.
    """
    plain = replace(settings, split=split, token_masking=0.0, mention_masking=0.0, name_masking=0.0)
    collator = Collator.of(shards, graph, plain)
    rows = np.array(shards.split(split)[:limit], np.int64)
    for begin in range(0, rows.size, batch_size):
        (arrays,), _ = collator.collate(rows[begin : begin + batch_size], 0)
        yield as_batch(arrays)
