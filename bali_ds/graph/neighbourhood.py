"""Several hops around a concept."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.neighbor_sampling import sample_neighbours
from bali_ds.graph.neighbor_weights import EdgeFilter, WeightedSampler
from bali_ds.randomness import Keys, derive


@dataclass(frozen=True)
class Neighbourhood:
    """Concepts within some hops of seeds, one tree a seed.

    H hops with fan-outs f1 ... fH. Level h holds the concepts drawn at hop h.

    Attributes:
        concepts: one array a level, int32 [n, f1 * ... * fh]; -1 where nothing was drawn. Level 0 is the seeds, [n, 1].
            Children of column j of level h are columns j * f to (j + 1) * f - 1 of level h + 1.
        relations: one array a level from 1 on, of the shape of `concepts`; the relation as read from the parent.
    """

    concepts: tuple[NDArray[np.int32], ...]
    relations: tuple[NDArray[np.int32], ...]


def sample_neighbourhood(
    graph: KnowledgeGraph, seeds: ArrayLike, fan_outs: Sequence[int], keys: Keys, kept: EdgeFilter | None = None
) -> Neighbourhood:
    """Draw several hops around each seed.

    Args:
        graph: the graph.
        seeds: int [n], concept ids.
        fan_outs: how many neighbours to draw at each hop.
        keys: uint64 [n], one a seed.
        kept: which facts to draw; all of them, uniformly, without it.
    """
    sampler = WeightedSampler(graph, kept) if kept else None
    level = np.asarray(seeds, np.int32)[:, None]
    concepts, relations = [level], []
    for hop, fan_out in enumerate(fan_outs):
        present = level >= 0
        row_keys = derive(np.broadcast_to(keys[:, None], level.shape)[present], hop, np.nonzero(present)[1])
        draw = sampler.sample if sampler else lambda *arguments: sample_neighbours(graph, *arguments)
        drawn = draw(level[present], fan_out, row_keys)
        levels = []
        for values in drawn:
            spread = np.full((*level.shape, fan_out), -1, np.int32)
            spread[present] = values
            levels.append(spread.reshape(level.shape[0], -1))
        level = levels[0]
        concepts.append(level)
        relations.append(levels[1])
    return Neighbourhood(tuple(concepts), tuple(relations))
