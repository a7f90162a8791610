"""Batches for evaluation: nothing masked, rows in order."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from bali_ds.data.batch import Batch, as_tensors
from bali_ds.data.batch_part import BatchPart
from bali_ds.data.collator import Collator
from bali_ds.data.mixture import Mixture
from bali_ds.data.sampler import SampleIndices
from bali_ds.data.sequences import Ints
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
    parts: tuple[BatchPart, ...] = (),
    numbers: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yield unmasked batches of a split in the order of the sample table; the last one may be smaller.

    Neighbors and names are those of epoch 0, so every call yields the same batches. A bad sample is replaced by
    another.

    Args:
        shards: the samples.
        graph: the graph that the shards were built from.
        settings: seed, fan-out and kind of graph view; there always are graph views and no masks.
        split: "train" or "validation".
        batch_size: samples a batch.
        limit: samples in all, from the start of every set in proportion to its size; None takes the whole split.
        parts: what is added to each batch, instead of the parts of the settings.
        numbers: which batches to yield, counted from 0; None yields all.

    Raises:
        InputError: the shards were built from another graph, or a shard cannot be read.
    """
    plain = replace(
        settings,
        split=split,
        token_masking=0.0,
        mention_masking=0.0,
        name_masking=0.0,
        graph_masking=0.0,
        with_graph=True,
        parts=parts,
    )
    mixture = Mixture.of(shards)
    collator = Collator.of(mixture, graph, plain)
    sample_rows = _first_rows(mixture, split, limit)
    for number in range(-(-sample_rows.size // batch_size)) if numbers is None else numbers:
        rows = sample_rows[number * batch_size :][:batch_size]
        [(arrays, _)] = collator.collate(SampleIndices(rows, np.zeros_like(rows)))
        yield as_tensors(arrays)


def _first_rows(mixture: Mixture, split: str, limit: int | None) -> Ints:
    sets = [mixture.rows_of(number, split) for number in range(len(mixture.sets))]
    total = sum(rows.size for rows in sets)
    share = 1.0 if limit is None else min(1.0, limit / max(total, 1))
    return np.concatenate([rows[: math.ceil(share * rows.size)] for rows in sets])[:limit]
