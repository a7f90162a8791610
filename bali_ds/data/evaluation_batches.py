"""Batches for evaluation: nothing masked, rows in order."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from bali_ds.data.batch import Batch
from bali_ds.data.collator import Collator
from bali_ds.data.loader import as_batch
from bali_ds.data.mixture import Mixture
from bali_ds.data.ragged import Ints
from bali_ds.data.sampler import Visits
from bali_ds.data.settings import StreamSettings
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.shard_set import ShardSet


def evaluation_batches(
    shards: ShardSet | Mixture,
    graph: KnowledgeGraph,
    settings: StreamSettings,
    *,
    split: str = "validation",
    batch_size: int = 64,
    limit: int | None = None,
    triples: bool = False,
) -> Iterator[Batch]:
    """Yield unmasked batches of a split in the order of the sample table, the last one perhaps smaller.

    Neighbors and synonyms are those of epoch 0, so every call yields the same batches. Another sample stands in for
    a bad one.

    Args:
        shards: the samples.
        graph: the graph that the shards were built from.
        settings: seed, fan-out, blocks and the kind of graph view, which is always there; masking does not matter.
        split: "train" or "validation".
        batch_size: samples a batch.
        limit: samples in all, from the begin of every set in proportion to its size; None takes the whole split.
        triples: give the facts of each passage as text, too.

    Raises:
        InputError: the graph is another one, or a shard cannot be read.
    """
    plain = replace(
        settings,
        split=split,
        token_masking=0.0,
        mention_masking=0.0,
        name_masking=0.0,
        graph_masking=0.0,
        with_graph=True,
        hold_out=False,
        synonyms="",
        triples=triples,
    )
    mixture = Mixture.of(shards)
    collator = Collator.of(mixture, graph, plain)
    rows = _first_rows(mixture, split, limit)
    for begin in range(0, rows.size, batch_size):
        block = rows[begin : begin + batch_size]
        [(arrays, _)] = collator.collate(Visits(block, np.zeros_like(block)))
        yield as_batch(arrays)


def _first_rows(mixture: Mixture, split: str, limit: int | None) -> Ints:
    sets = [mixture.rows_of(number, split) for number in range(len(mixture.sets))]
    total = sum(rows.size for rows in sets)
    share = 1.0 if limit is None else min(1.0, limit / max(total, 1))
    return np.concatenate([rows[: math.ceil(share * rows.size)] for rows in sets])[:limit]
