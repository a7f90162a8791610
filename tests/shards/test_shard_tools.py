"""Subsets, merged sets and commands."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from bali_ds.cli import main
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.build import build_shards
from bali_ds.shards.build_settings import BuildSettings
from bali_ds.shards.lint import lint
from bali_ds.shards.neighbor_settings import NeighborSettings
from bali_ds.shards.sample_display import write_page
from bali_ds.shards.shard_set import ShardSet
from bali_ds.shards.subset import merge_shards, sample_shards
from bali_ds.shards.tar_scanner import reindex

from .conftest import SETTINGS, write_corpus


def samples(path):
    shards = ShardSet.open(path)
    return {
        shards.key(row): tuple(array.tobytes() for array in shards.arrays(row)) for row in range(len(shards.samples))
    }


def test_a_subset_is_lint_clean_and_its_samples_are_the_originals(built, tmp_path, graph_directory):
    sample_shards(built, tmp_path / "a", 40, seed=1)
    sample_shards(built, tmp_path / "b", 40, seed=1)
    sample_shards(built, tmp_path / "c", 40, seed=2)
    assert lint(tmp_path / "a", graph_directory) == []
    chosen = samples(tmp_path / "a")
    assert len(chosen) == 40
    assert chosen.items() <= samples(built).items()
    assert chosen == samples(tmp_path / "b") != samples(tmp_path / "c")
    validation = {ShardSet.open(built).key(row) for row in ShardSet.open(built).split("validation")}
    subset = ShardSet.open(tmp_path / "a")
    assert {subset.key(row) for row in subset.split("validation")} == validation & set(chosen)
    with pytest.raises(InputError, match=r"--samples 1000000: .* has \d+ samples"):
        sample_shards(built, tmp_path / "d", 10**6, seed=1)


def test_merged_sets_hold_the_samples_of_all(built, tmp_path, corpora, graph_directory, tokenizer_directory):
    for number, corpus in enumerate(corpora):
        build_shards([corpus], graph_directory, str(tokenizer_directory), tmp_path / str(number), SETTINGS)
    parts = [tmp_path / str(number) for number in range(len(corpora))]
    merge_shards(parts, tmp_path / "whole")
    assert lint(tmp_path / "whole", graph_directory) == []
    assert samples(tmp_path / "whole") == samples(built)
    with pytest.raises(InputError, match="occurs twice"):
        merge_shards([parts[0], parts[0]], tmp_path / "twice")
    other = BuildSettings(max_tokens=40, stored_fan_out=8, max_name_tokens=6)
    build_shards(corpora[:1], graph_directory, str(tokenizer_directory), tmp_path / "other", other)
    with pytest.raises(InputError, match=r"belongs to another shard set .*: max_tokens differs"):
        merge_shards([parts[0], tmp_path / "other"], tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_facts_are_stored_by_weight_source_and_degree(built, tmp_path, corpora, graph_directory, tokenizer_directory):
    """C0000000 is the hub of has_part; without that relation, or without the hub, only isa and treats remain."""
    common = [corpora[:1], graph_directory, str(tokenizer_directory)]
    graph = KnowledgeGraph.open(graph_directory)
    has_part = graph.relations.index("has_part") + np.array([0, graph.num_relations])
    found = {}
    for name, neighbor_settings in {
        "weights": NeighborSettings(weights=(("has_part", 0.0),)),
        "degree": NeighborSettings(largest_degree=30),
        "sources": NeighborSettings(sources=("MADE",)),
    }.items():
        settings = replace(SETTINGS, neighbors=neighbor_settings)
        index = build_shards(*common, tmp_path / name, settings).index
        assert index["neighbours"] == neighbor_settings.describe() != {}
        assert lint(tmp_path / name, graph_directory) == []
        assert reindex(tmp_path / name) == index
        found[name] = np.concatenate([edges for _, _, edges in map(ShardSet.open(tmp_path / name).arrays, range(20))])
        assert len(found[name])
    assert not np.isin(found["weights"][:, 1], has_part).any()
    assert (found["degree"][:, 2] != 0).all()
    assert np.isin(found["sources"][:, 1], has_part).any()
    assert "neighbours" not in ShardSet.open(built).index
    with pytest.raises(InputError, match=r"belongs to another shard set .*: neighbours differs"):
        merge_shards([built, tmp_path / "weights"], tmp_path / "mixed")
    for neighbor_settings in (NeighborSettings(weights=(("cures", 2.0),)), NeighborSettings(sources=("NONE",))):
        with pytest.raises(InputError, match=r"is not in .*; use one of"):
            build_shards(*common, tmp_path / "none", replace(SETTINGS, neighbors=neighbor_settings))
    assert not (tmp_path / "none").exists()


def test_random_passages_show_their_mentions(tmp_path, tokenizer_directory, graph_directory, capsys):
    """Overlapping mentions and several concepts of one mention share a bracket."""
    text = "Chronic renal failure of the heart was found in a mouse."
    spans = [("renal failure", "C0000001|C0000002"), ("failure of the heart", "C0000003"), ("mouse", "C0000004")]
    rows = [f"1\t{text.index(s)}\t{text.index(s) + len(s)}\t{s}\tDisease\t{ids}\n" for s, ids in spans]
    (tmp_path / "one.txt").write_text(f"1|t|{text}\n{''.join(rows)}")
    where = ["--graph", str(graph_directory), "--tokenizer", str(tokenizer_directory)]
    out = str(tmp_path / "shards")
    assert main(["shards", "build", *where, "--corpus", f"pubtator:{tmp_path / 'one.txt'}", "--out", out]) == 0
    graph = KnowledgeGraph.open(graph_directory)
    names = [f"{graph.cui(each)} {graph.preferred_name(each)}" for each in range(1, 5)]
    assert "renal failure  →  C0000001" in capsys.readouterr().out
    assert main(["shards", "show", out, "--random", "9", *where]) == 0
    bracket = f"[renal failure of the heart → {'; '.join(names[:3])}] was found in a [mouse → {names[3]}]."
    assert capsys.readouterr().out == f"1_000\n  chronic {bracket}\n\n"
    assert main(["shards", "show", out, "--random", "1", "--html", str(tmp_path / "page.html"), *where]) == 0
    page = (tmp_path / "page.html").read_text()
    assert f"<p>chronic <mark>renal failure of the heart <small>{'; '.join(names[:3])}</small></mark>" in page
    value = {"key": "1_000", "pieces": [{"text": "a < b", "concepts": ["C1 <i>"]}]}
    write_page([value], "a & b", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<h1>a &amp; b</h1>" in page
    assert "<mark>a &lt; b <small>C1 &lt;i&gt;</small></mark>" in page
    for wrong in ([], ["1_000", "--random", "1"], ["--random", "0"]):
        assert main(["shards", "show", out, *wrong]) == 2


def test_random_passages_follow_the_seed(built, capsys):
    def keys(*options):
        assert main(["shards", "show", str(built), "--json", *options]) == 0
        return [value["key"] for value in json.loads(capsys.readouterr().out)]

    assert keys("--random", "5") == keys("--random", "5", "--seed", "0") != keys("--random", "5", "--seed", "1")
    assert len(set(keys("--random", "1000000"))) == len(ShardSet.open(built).samples)


def test_a_folder_and_a_pattern_are_built_like_their_files(
    tmp_path, concept_names, graph_directory, tokenizer_directory, capsys
):
    folder = tmp_path / "baseline"
    folder.mkdir()
    files = [folder / f"pubmed{number:04}.txt" for number in range(12)]
    for number, file in enumerate(files):
        write_corpus(file, concept_names, documents=1, seed=number, first=number)
    common = ["shards", "build", "--graph", str(graph_directory), "--tokenizer", str(tokenizer_directory), "--json"]
    built = []
    for entries in ([folder], [f"{folder}/*.txt"], files):
        out = tmp_path / str(len(built))
        assert main([*common, "--corpus", *(f"pubtator:{each}" for each in entries), "--out", str(out)]) == 0
        assert json.loads(capsys.readouterr().out)["counts"]["documents"] == 12
        built.append(samples(out))
    assert built[0] == built[1] == built[2] != {}


def test_the_build_command_reports(tmp_path, corpora, concept_names, graph_directory, tokenizer_directory, capsys):
    common = ["shards", "build", "--graph", str(graph_directory), "--tokenizer", str(tokenizer_directory)]
    files = [f"pubtator:{corpus.path}" for corpus in corpora]
    assert main([*common, "--corpus", *files, "--out", str(tmp_path / "s"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["documents"] == 105
    assert report["linked_by_type"] == {"Disease": report["counts"]["linked_mentions"]}
    assert report["most_frequent"][0]["passages"] >= report["most_frequent"][1]["passages"]
    rows = [line.split("\t") for corpus in corpora for line in corpus.path.read_text().splitlines() if "\t" in line]
    known = set(concept_names)
    pairs = [(row[3].lower(), cui) for row in rows for cui in dict.fromkeys(row[5].replace("UMLS:", "").split("|"))]
    linked = Counter(pair for pair in pairs if pair[1] in known)
    found = {(row["text"], row["cui"]): row["mentions"] for row in report["most_linked"]}
    assert found.items() <= linked.items()
    assert list(found.values()) == [number for _, number in linked.most_common(20)]
    assert main([*common, "--corpus", *files, "--out", str(tmp_path / "s"), "--link", "dictionary"]) == 0
    text = capsys.readouterr().out
    assert "\ndropped\n" in text
    assert "most frequent concepts" in text
    assert lint(tmp_path / "s", graph_directory) == []
    broken = tmp_path / "broken.txt"
    broken.write_text("1|t|Short\n1\t3\t99\tx\ty\tC0000001\n")
    assert main([*common, "--corpus", files[0], f"pubtator:{broken}", "--out", str(tmp_path / "s")]) == 1
    assert "skipped: " in capsys.readouterr().err
    for wrong in (
        ["--corpus", "nonsense"],
        ["--corpus", "pubtator:/no/file"],
        ["--corpus", *files, "--max-tokens", "3"],
        ["--corpus", *files, "--relation-weight", "has_part"],
        ["--corpus", *files, "--relation-weight", "cures=2"],
        ["--corpus", *files, "--largest-degree", "-1"],
    ):
        assert main([*common, *wrong, "--out", str(tmp_path / "t")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "t").exists()
