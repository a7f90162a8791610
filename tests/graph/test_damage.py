"""Damaged graphs are refused or read correctly, whatever the bytes; a full disk leaves no partial graph."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bali_ds.errors import InputError
from bali_ds.graph.concept_display import describe_concept, readable
from bali_ds.graph.graph_statistics import graph_statistics
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.manifest import checksum
from bali_ds.graph.neighbor_sampling import EdgeFilter, WeightedSampler, sample_neighbors
from bali_ds.randomness import derive

MUTATIONS = int(os.environ.get("BALI_MUTATIONS", "150"))


def mutate(content: bytes, random) -> bytes:
    """Return the content truncated, extended, rotated, or with a few bytes zeroed, flipped or overwritten."""
    data = bytearray(content)
    kind, at = random.integers(7), int(random.integers(max(len(data), 1)))
    match kind:
        case 0:
            return bytes(data[:at])
        case 1:
            return bytes(data) + random.bytes(int(random.integers(1, 200)))
        case 2:
            return bytes(data[at:] + data[:at])
        case 3:
            data[at : at + 8] = bytes(len(data[at : at + 8]))
        case 4:
            data[at : at + 8] = b"\xff" * len(data[at : at + 8])
        case 5:
            data[at : at + 1] = bytes([(data[at] ^ (1 << int(random.integers(8)))) if data else 0])
        case _:
            data[at : at + 16] = random.bytes(16)
    return bytes(data)


def use(graph: KnowledgeGraph) -> list:
    """Call everything that commands and training call on a graph, and return the results."""
    concepts = np.arange(graph.num_concepts)
    keys = derive(1, concepts)
    results = [graph.lookup(["C1", "C4", "C9"]).tolist(), graph.code_to_cuis("", "MESH:D005334")]
    edge_filter = EdgeFilter(largest_degree=3, held_out=np.array([[0, 1]]))
    for sampled in (
        sample_neighbors(graph, concepts, 2, keys),
        WeightedSampler(graph, edge_filter).sample(concepts, 2, keys),
    ):
        results.append([part.tolist() for part in sampled])
    for concept in concepts.tolist():
        description = describe_concept(graph, graph.cui(concept))
        results.append((graph.preferred_name(concept), graph.name(concept), description, readable(description, 3)))
    return results


@pytest.mark.timeout(300 + MUTATIONS)
def test_mutated_graphs_are_refused_or_read_correctly(small_graph, tmp_path):
    """A verified graph is refused or gives equal results; an unverified one neither crashes nor allocates."""
    random = np.random.default_rng(int(os.environ.get("BALI_SEED", "11")))
    whole = {path.name: path.read_bytes() for path in small_graph.path.iterdir()}
    expected, statistics = use(small_graph), graph_statistics(small_graph)
    folder = tmp_path / "mutated"
    shutil.copytree(small_graph.path, folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    names = sorted(whole)
    refused = 0
    for _ in range(MUTATIONS):
        name = names[random.integers(len(names))]
        content = mutate(whole[name], random)
        (folder / name).write_bytes(content)
        try:
            verified = KnowledgeGraph.open(folder, verify=True)
            assert use(verified) == expected
            assert graph_statistics(verified) == statistics
        except InputError:
            refused += 1
        with contextlib.suppress(InputError):
            use(KnowledgeGraph.open(folder))
        (folder / name).write_bytes(whole[name])
    assert refused > MUTATIONS / 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_missing_columns_of_a_manifest_are_refused(small_graph):
    """A manifest with a valid checksum that lacks or redefines a required field."""
    path = small_graph.path / "manifest.json"
    manifest = json.loads(path.read_text())
    changes = [
        {"columns": {}}, {"columns": 7}, {"relations": None}, {"relations": [1]}, {"inverse_relations": []},
        {"columns": {**manifest["columns"], "edges.entries": {"dtype": "<u8", "length": -1, "sha256": ""}}},
        {"columns": {**manifest["columns"], "edges.entries": {"dtype": "O", "length": 1, "sha256": ""}}},
        {"columns": {**manifest["columns"], "edges.entries": {"dtype": "<f8", "length": 5, "sha256": ""}}},
        {"columns": {**manifest["columns"], "../x": {"dtype": "<i4", "length": 1, "sha256": ""}}},
        {"columns": {**manifest["columns"], "edges.entries": {"dtype": "<u8", "length": 2**62, "sha256": ""}}},
        {"semantic_types": []}, {"sources": []}, {"code_sources": ["A"]}, {"fingerprint": 5},
    ]  # fmt: skip
    for change in changes:
        content = {**manifest, **change}
        content["checksum"] = checksum(content)
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"\A[^\n]*build the graph again\Z"):
            use(KnowledgeGraph.open(small_graph.path))


@pytest.mark.parametrize("limit", [0, 100, 400])
def test_a_full_disk_is_reported_in_one_line_and_leaves_no_files(small_tables, tmp_path, limit):
    """A limit on the size of files simulates a full disk: writing beyond it fails in the same way."""
    script = (
        "import resource, signal, sys; from bali_ds.cli import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "built"
    command = [sys.executable, "-c", script, "graph", "build", "--tsv", *map(str, small_tables), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr
    assert not list(tmp_path.glob("*built*"))
