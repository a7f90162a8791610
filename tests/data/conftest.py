"""Small random shard sets, written with the project's own writer."""

import numpy as np
import pytest

from bali_ds.graph.builder import build_graph
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.tables import TableSource
from bali_ds.shards.layout import FORMAT_VERSION, npy_bytes, token_dtype
from bali_ds.shards.sample import Sample
from bali_ds.shards.shard_set import ShardSet
from tests.shards.sample_writer import write_samples

VOCABULARY = {"vocab_size": 200, "pad_id": 0, "unk_id": 1, "cls_id": 2, "sep_id": 3, "mask_id": 4}
RELATIONS = 5
NODE_COLUMNS = ("cui", "preferred_name", "synonyms", "semantic_types", "source_terms")
EDGE_COLUMNS = ("head_cui", "relation", "tail_cui", "source")


def write_graph(directory, concepts=60, seed=1):
    """Build a graph of random names and facts; some concepts have no name."""
    generator = np.random.default_rng(seed)
    directory.mkdir()
    names = ["|".join(f"name {number} {kind}" for kind in range(generator.integers(5))) for number in range(concepts)]
    nodes = [f"C{number:03d}\t\t{text}\t\t" for number, text in enumerate(names)]
    pairs = zip(generator.permutation(concepts), generator.permutation(concepts), strict=True)
    edges = [f"C{head:03d}\tkind{number % RELATIONS}\tC{tail:03d}\tX" for number, (head, tail) in enumerate(pairs)]
    (directory / "nodes.tsv").write_text("\n".join(["\t".join(NODE_COLUMNS), *nodes]) + "\n")
    (directory / "edges.tsv").write_text("\n".join(["\t".join(EDGE_COLUMNS), *edges]) + "\n")
    build_graph([TableSource(directory / "nodes.tsv", directory / "edges.tsv")], directory / "graph")
    return KnowledgeGraph.open(directory / "graph")


def random_sample(generator, number, graph, neighbors):
    length = int(generator.integers(4, 40))
    tokens = np.concatenate([[2], generator.integers(5, 200, length - 2), [3]]).astype(np.uint16)
    mentions = []
    for _ in range(int(generator.integers(0, 6))):
        start = int(generator.integers(1, length - 1))
        end = int(generator.integers(start + 1, min(length, start + 5)))
        mentions.append((start, end, int(generator.integers(graph.num_concepts))))
    mentions = np.array(sorted(mentions), np.int32).reshape(-1, 3)
    edges = [edge for concept in dict.fromkeys(mentions[:, 2].tolist()) for edge in neighbors[concept]]
    return Sample(
        f"doc{number:05d}_000", tokens, mentions, np.array(edges, np.int32).reshape(-1, 3), {"document": number}
    )


def write_shards(directory, graph, *, train=100, validation=17, shard_samples=16, seed=0, max_tokens=40):
    """Write a shard set of random samples and open it."""
    generator = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    neighbors = {
        concept: [
            (concept, int(generator.integers(2 * RELATIONS)), int(generator.integers(graph.num_concepts)))
            for _ in range(int(generator.integers(0, 8)))
        ]
        for concept in range(graph.num_concepts)
    }
    lengths = generator.integers(0, 9, graph.num_names)
    dtype = token_dtype(VOCABULARY["vocab_size"])
    (directory / "names.tokens.npy").write_bytes(npy_bytes(generator.integers(5, 200, lengths.sum()).astype(dtype)))
    (directory / "names.offsets.npy").write_bytes(npy_bytes(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)))
    samples = [random_sample(generator, number, graph, neighbors) for number in range(train + validation)]
    description = {
        "format_version": FORMAT_VERSION,
        "graph_fingerprint": graph.fingerprint,
        "graph": {"names": graph.num_names, "concepts": graph.num_concepts, "relations": RELATIONS},
        "tokenizer": {**VOCABULARY, "name": "random", "fingerprint": "none", "special_ids": [0, 1, 2, 3, 4]},
        "max_tokens": max_tokens,
        "max_name_tokens": 8,
        "stored_fan_out": 8,
    }
    splits = {"train": samples[:train], "validation": samples[train:]}
    write_samples(directory, description, splits, shard_samples, {})
    return ShardSet.open(directory)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A shard set and its graph."""
    directory = tmp_path_factory.mktemp("stream")
    graph = write_graph(directory / "graph")
    return write_shards(directory / "shards", graph), graph
