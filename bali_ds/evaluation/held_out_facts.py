"""Facts that a model must not have seen: pairs of concepts, as `graph build --hold-out` takes them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bali_ds.files import published_file
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.tables import read_table

COLUMNS = ("head_cui", "tail_cui")


def held_out_entries(graph: KnowledgeGraph, table: Path) -> NDArray[np.bool_]:
    """Return which entries of the neighbor lists lie between two concepts of a row, in either direction, bool [2E].

    Raises:
        InputError: the table cannot be read or lacks a column.
    """
    found = [np.zeros(0, np.int64)]
    for frame in read_table(table, COLUMNS):
        heads, tails = (graph.lookup(frame[column].to_list()).astype(np.int64) for column in COLUMNS)
        known = (heads >= 0) & (tails >= 0)
        found.append(_codes(graph, heads[known], tails[known]))
    return np.isin(_codes(graph, *entry_ends(graph)), np.concatenate(found))


def draw_held_out(graph: KnowledgeGraph, table: Path, *, share: float, seed: int) -> None:
    """Write a share of the pairs of neighbors, drawn without replacement, as a table."""
    codes = np.unique(_codes(graph, *entry_ends(graph)))
    chosen = np.sort(np.random.default_rng(seed).choice(codes, round(share * len(codes)), replace=False))
    with published_file(table, "w") as stream:
        stream.write("\t".join(COLUMNS) + "\n")
        for low, high in zip(*(each.tolist() for each in np.divmod(chosen, graph.num_concepts)), strict=True):
            stream.write(f"{graph.cui(low)}\t{graph.cui(high)}\n")


def entry_ends(graph: KnowledgeGraph) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return both concepts of every entry of the neighbor lists, int64 [2E] each."""
    offsets: NDArray[np.int64] = np.asarray(graph.edge_offsets[:]).astype(np.int64)
    return np.repeat(np.arange(graph.num_concepts), np.diff(offsets)), np.asarray(graph.edge_targets[:]).astype(
        np.int64
    )


def _codes(graph: KnowledgeGraph, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for a pair, whatever its order."""
    return np.minimum(first, second) * graph.num_concepts + np.maximum(first, second)
