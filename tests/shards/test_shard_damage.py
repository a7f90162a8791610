"""Damaged shard sets are refused in one line, without a traceback."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from bali_ds.cli import main
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.lint import lint, sample_findings
from bali_ds.shards.sample import Sample
from bali_ds.shards.shard_set import ShardSet


@pytest.fixture
def copy(built, tmp_path):
    return shutil.copytree(built, tmp_path / "copy")


def change_index(directory, **changes):
    index = json.loads((directory / "index.json").read_text())
    (directory / "index.json").write_text(json.dumps({**index, **changes}))


def test_a_truncated_tar_is_refused_at_open(copy, capsys):
    tar = copy / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-700])
    with pytest.raises(InputError, match=r"train-000001.tar: has \d+ bytes, the index says \d+"):
        ShardSet.open(copy)
    assert main(["shards", "lint", str(copy)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_tar_is_refused_at_open(copy):
    (copy / "train-000000.tar").unlink()
    with pytest.raises(InputError, match=r"train-000000.tar: is missing"):
        ShardSet.open(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format version 99"),
        (
            {"shards": [{"name": "../../etc/passwd.tar", "split": "train", "samples": 1, "bytes": 1, "sha256": ""}]},
            "not a plain file name",
        ),
        ({"shards": [{"name": "a.tar"}]}, "key shards.0.split: Field required"),
        ({"shards": []}, r"samples.npy: has .* expected .* \[0\]"),
        ({"tokenizer": None}, "key tokenizer: must be a mapping"),
        ({"tokenizer": {}}, "key tokenizer.name: Field required"),
    ],
)
def test_an_invalid_index_is_refused(copy, changes, message):
    change_index(copy, **changes)
    with pytest.raises(InputError, match=message) as caught:
        ShardSet.open(copy)
    assert "\n" not in str(caught.value)


def test_a_pickled_sample_table_is_never_loaded(copy):
    np.save(copy / "samples.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="has object"):
        ShardSet.open(copy)


def test_lint_reports_every_flipped_bit(copy, graph_directory):
    draw = random.Random(3)
    for _ in range(20):
        tar = draw.choice(sorted(copy.glob("*.tar")))
        whole = tar.read_bytes()
        at = draw.randrange(len(whole))
        tar.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :])
        assert any("SHA-256" in finding for finding in lint(copy, graph_directory))
        tar.write_bytes(whole)


def test_lint_reports_changed_tables_and_an_index_with_another_fingerprint(copy):
    """A resumed run relies on both: it compares the fingerprint alone."""
    assert lint(copy) == []
    names = np.load(copy / "names.tokens.npy")
    names[:2] = names[1::-1]
    np.save(copy / "names.tokens.npy", names)
    assert lint(copy) == [f"{copy}/names.tokens.npy: its SHA-256 differs from the index"]
    shutil.copyfile(copy / "index.json", copy / "old.json")
    change_index(copy, max_name_tokens=7)
    assert any("its fingerprint is not that of its content" in finding for finding in lint(copy))
    index = json.loads((copy / "old.json").read_text())
    del index["tables"]["samples.npy"]
    (copy / "index.json").write_text(json.dumps(index))
    assert any("has no hash of samples.npy" in finding for finding in lint(copy))


def test_lint_reports_another_graph(copy):
    change_index(copy, graph_fingerprint="0" * 64)
    assert any("describes another shard set" in finding for finding in lint(copy))


def test_lint_reports_an_index_whose_counts_differ_from_the_graph(copy, graph_directory):
    graph = json.loads((copy / "index.json").read_text())["graph"]
    change_index(copy, graph=graph | {"concepts": graph["concepts"] + 1})
    assert any("says that the graph has 61 concepts, but" in finding for finding in lint(copy, graph_directory))


def test_ids_outside_of_the_graph_do_not_alias_a_fact(built, graph_directory):
    """(relation + 2**16, neighbor - 1) is not the fact (relation, neighbor), even if packed into one integer."""
    shards, graph = ShardSet.open(built), KnowledgeGraph.open(graph_directory)
    arrays = (shards.arrays(row) for row in range(len(shards.samples)))
    tokens, mentions, edges = next(found for found in arrays if len(found[2]) and found[2][0, 2] % 2)
    valid = Sample("a_000", tokens, mentions, edges, {"document": "a", "passage": 0})
    assert list(sample_findings(valid, shards, graph)) == []
    wrong = edges.copy()
    wrong[0, 1:] += (1 << 16, -1)
    findings = list(sample_findings(replace(valid, edges=wrong), shards, graph))
    assert findings == ["an edge's relation is not in the graph", "an edge is not a fact of the graph"]


def test_stats_and_show_commands(built, graph_directory, tokenizer_directory, capsys):
    assert main(["shards", "stats", str(built), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {"documents", "passages", "mentions", "linked_mentions", "concepts", "shards", "fingerprint"} <= set(values)
    key = ShardSet.open(built).key(3)
    assert (
        main(
            [
                "shards",
                "show",
                str(built),
                key,
                "--graph",
                str(graph_directory),
                "--tokenizer",
                str(tokenizer_directory),
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert key in shown
    assert "[CLS]" in shown
    assert "C00000" in shown
    assert main(["shards", "show", str(built), "nothing"]) == 2
    assert main(["shards", "stats", str(built / "nowhere")]) == 2
