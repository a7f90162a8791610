"""Check of a shard set: every byte of every tar, and every sample against the index and the graph."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.files import sha256_file
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.sample import Sample, sample_key
from bali_ds.shards.shard_index import REBUILD, TABLES, index_fingerprint
from bali_ds.shards.shard_set import Shard, ShardSet
from bali_ds.shards.tar_scanner import ScannedSample, TarScanner

_LARGEST_LIST = 100
_DESCRIBED = (
    "format_version", "graph_fingerprint", "graph", "tokenizer", "max_tokens", "max_name_tokens", "stored_fan_out",
    "neighbours",
)  # fmt: skip


def lint(path: Path, graph_path: Path | None = None) -> list[str]:
    """Return the problems of a shard set, at most 100.

    Raises:
        InputError: the shard set or the graph cannot be opened.
    """
    shards = ShardSet.open(path)
    graph = KnowledgeGraph.open(graph_path) if graph_path else None
    return list(islice(_findings(shards, graph), _LARGEST_LIST))


def _findings(shards: ShardSet, graph: KnowledgeGraph | None) -> Iterator[str]:
    if graph:
        try:
            shards.check_graph(graph)
        except InputError as error:
            yield str(error)
            graph = None
    yield from _index_findings(shards)
    try:
        yield from _name_findings(shards)
    except InputError as error:
        yield str(error)
    seen: set[str] = set()
    for number, shard in enumerate(shards.shards):
        try:
            yield from _shard_findings(shards, number, shard, graph, seen)
        except InputError as error:
            yield str(error)


def _index_findings(shards: ShardSet) -> Iterator[str]:
    """Compare the tables with their hashes in the index, and the index with its fingerprint."""
    file, tables = shards.path / "index.json", shards.index.get("tables", {})
    for name in TABLES:
        if name not in tables:
            yield f"{file}: has no hash of {name}; {REBUILD}"
        elif sha256_file(shards.path / name) != tables[name]:
            yield f"{shards.path / name}: its SHA-256 differs from the index"
    if index_fingerprint(shards.index) != shards.fingerprint:
        yield f"{file}: its fingerprint is not that of its content; {REBUILD}"


def _shard_findings(
    shards: ShardSet, number: int, shard: Shard, graph: KnowledgeGraph | None, seen: set[str]
) -> Iterator[str]:
    tar = shards.path / shard.name
    if sha256_file(tar) != shard.sha256:
        yield f"{tar}: its SHA-256 differs from the index"
    scanner = TarScanner(tar)
    if any(scanner.description.get(key) != shards.index.get(key) for key in _DESCRIBED):
        yield f"{tar}: describes another shard set than the index"
    rows = shards.samples[shards.starts[number] : shards.starts[number + 1]]
    count = 0
    for count, scanned in enumerate(scanner.samples(shards.token_dtype), 1):
        sample = scanned.sample
        where = f"{tar}: {sample.key}"
        if count > len(rows) or rows[count - 1].item() != _expected_row(scanned):
            yield f"{where}: differs from its row in the sample table"
        if sample.key in seen:
            yield f"{where}: the key occurs twice"
        seen.add(sample.key)
        yield from (f"{where}: {finding}" for finding in sample_findings(sample, shards, graph))
    if count != len(rows):
        yield f"{tar}: contains {count} samples, the index says {len(rows)}"


def _expected_row(scanned: ScannedSample) -> tuple[int, ...]:
    sample = scanned.sample
    return scanned.offset, len(sample.tokens), len(sample.mentions), len(sample.edges), sample.num_views


def sample_findings(sample: Sample, shards: ShardSet, graph: KnowledgeGraph | None) -> Iterator[str]:
    """Yield the problems of one sample."""
    tokenizer, counts = shards.index["tokenizer"], shards.index["graph"]
    tokens, mentions, edges = sample.tokens, sample.mentions, sample.edges
    if not 2 <= len(tokens) <= shards.index["max_tokens"]:
        yield f"{len(tokens)} tokens"
    elif tokens[0] != tokenizer["cls_id"] or tokens[-1] != tokenizer["sep_id"]:
        yield "does not begin and end with the special tokens"
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < tokenizer["vocab_size"]:
        yield "a token is outside of the vocabulary"
    starts, ends, concept_ids = mentions[:, 0], mentions[:, 1], mentions[:, 2]
    if ((starts < 1) | (ends <= starts) | (ends > len(tokens) - 1)).any():
        yield "a mention is outside of the passage"
    if ((concept_ids < 0) | (concept_ids >= counts["concepts"])).any():
        yield "a mention's concept is not in the graph"
    yield from _edge_findings(concept_ids, edges, shards)
    if graph and not _are_facts(edges, graph):
        yield "an edge is not a fact of the graph"
    document, passage = sample.meta.get("document"), sample.meta.get("passage")
    if not isinstance(document, str) or not isinstance(passage, int) or sample_key(document, passage) != sample.key:
        yield "its metadata names another sample"


def _edge_findings(concept_ids: NDArray[np.int32], edges: NDArray[np.int32], shards: ShardSet) -> Iterator[str]:
    counts = shards.index["graph"]
    order = {each: position for position, each in enumerate(dict.fromkeys(concept_ids.tolist()))}
    positions = [order.get(each, -1) for each in edges[:, 0].tolist()]
    if -1 in positions or positions != sorted(positions):
        yield "edges are not grouped by the passage's concepts in order of first mention"
    elif positions and int(np.bincount(positions).max()) > shards.index["stored_fan_out"]:
        yield "a concept has more edges than the stored fan-out"
    relations, neighbors = edges[:, 1], edges[:, 2]
    if ((relations < 0) | (relations >= 2 * counts["relations"])).any():
        yield "an edge's relation is not in the graph"
    if ((neighbors < 0) | (neighbors >= counts["concepts"])).any():
        yield "an edge's neighbor is not in the graph"


def _are_facts(edges: NDArray[np.int32], graph: KnowledgeGraph) -> bool:
    for concept_id in np.unique(edges[:, 0]).tolist():
        if not 0 <= concept_id < graph.num_concepts:
            return False
        row = slice(int(graph.edge_offsets[concept_id]), int(graph.edge_offsets[concept_id + 1]))
        facts = _fact_keys(graph.edge_targets[row], graph.edge_relations[row])
        own = edges[edges[:, 0] == concept_id]
        if not np.isin(_fact_keys(own[:, 2], own[:, 1]), facts).all():
            return False
    return True


def _fact_keys(neighbors: NDArray[np.int32], relations: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return an int64 per pair that is unique even for ids outside of the graph."""
    return neighbors.astype(np.int64) * (1 << 32) + relations


def _name_findings(shards: ShardSet) -> Iterator[str]:
    if (shards.names.offsets[1:] == shards.names.offsets[:-1]).any():
        yield f"{shards.path / 'names.offsets.npy'}: a name is empty"
