import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import webdataset

from bali_ds.corpus.document import ReadReport
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.build import build_shards
from bali_ds.shards.build_settings import BuildSettings, Corpus
from bali_ds.shards.lint import lint
from bali_ds.shards.shard_set import ShardSet
from bali_ds.shards.summary import statistics
from bali_ds.shards.tar_scanner import reindex

from .conftest import SETTINGS


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_lint_finds_nothing(built, graph_directory):
    assert lint(built, graph_directory) == []


def test_equal_input_gives_equal_bytes_in_another_process_and_place(
    built, tmp_path, corpora, graph_directory, tokenizer_directory
):
    out = tmp_path / "deeper" / "again"
    arguments = [f"pubtator:{corpus.path}" for corpus in corpora]
    values = {"max-tokens": 48, "stored-fan-out": 8, "shard-samples": 32, "validation": 0.2, "max-name-tokens": 6}
    options = [f"--{name}={value}" for name, value in values.items()]
    command = [sys.executable, "-m", "bali_ds", "shards", "build", "--graph", graph_directory, "--corpus", *arguments]
    subprocess.run(
        [*command, "--tokenizer", tokenizer_directory, "--out", out, *options],
        check=True,
        env={"PYTHONHASHSEED": "99", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
    )
    assert contents(out) == contents(built)
    assert [path.name for path in out.parent.iterdir()] == ["again"]


def test_tarfile_and_webdataset_read_the_same_samples(built):
    shards = ShardSet.open(built)
    row = 0
    for shard in shards.shards:
        with tarfile.open(built / shard.name) as archive:
            names = archive.getnames()
        assert len(names) == 4 * shard.samples
        plain = webdataset.WebDataset(str(built / shard.name), shardshuffle=False).decode()
        for sample in plain:
            tokens, mentions, edges = shards.arrays(row)
            assert sample["__key__"] == shards.key(row)
            assert (sample["tokens.npy"] == tokens).all()
            assert (sample["mentions.npy"] == mentions).all()
            assert (sample["edges.npy"] == edges).all()
            assert shards.samples[row]["views"] == len(set(mentions[:, 2].tolist()))
            row += 1
    assert row == len(shards.samples) > 100


def test_samples_equal_those_of_a_slow_reader(built, corpora, graph_directory, tokenizer_directory):
    """Compare the tokens and the concept of every linked mention, and the facts of every concept, by document."""
    graph, tokenizer, shards = (
        KnowledgeGraph.open(graph_directory),
        Tokenizer.load(tokenizer_directory),
        ShardSet.open(built),
    )
    expected = {}
    for corpus in corpora:
        for document in corpus.documents(ReadReport()):
            for mention in document.mentions:
                for cui in mention.ids:
                    concept_id = int(graph.lookup([cui.removeprefix("UMLS:")])[0])
                    if concept_id >= 0:
                        tokens = tokenizer.encode(mention.text).ids.tolist()
                        expected.setdefault(document.id, []).append((tokens, concept_id))
    found = {}
    for row in range(len(shards.samples)):
        tokens, mentions, edges = shards.arrays(row)
        document = shards.key(row).rsplit("_", 1)[0]
        for start, end, concept in mentions.tolist():
            found.setdefault(document, []).append((tokens[start:end].tolist(), concept))
        for concept, relation, neighbor in edges.tolist():
            whole = slice(graph.edge_offsets[concept], graph.edge_offsets[concept + 1])
            facts = zip(graph.edge_relations[whole].tolist(), graph.edge_targets[whole].tolist(), strict=True)
            assert (relation, neighbor) in set(facts)
        for concept in dict.fromkeys(mentions[:, 2].tolist()):
            degree = int(graph.edge_offsets[concept + 1] - graph.edge_offsets[concept])
            own = edges[edges[:, 0] == concept]
            assert len(own) == min(degree, 8)
            assert len(np.unique(own, axis=0)) == len(own)
    assert {key: sorted(value) for key, value in found.items()} == {k: sorted(v) for k, v in expected.items()}


def test_splits_hold_whole_documents(built):
    shards = ShardSet.open(built)
    documents = [
        {shards.key(row).rsplit("_", 1)[0] for row in shards.split(split)} for split in ("train", "validation")
    ]
    assert documents[1]
    assert not documents[0] & documents[1]
    assert len(shards.split("train")) + len(shards.split("validation")) == len(shards.samples)


def test_names_are_all_names_of_the_graph_truncated(built, graph_directory, tokenizer_directory):
    graph, tokenizer, names = (
        KnowledgeGraph.open(graph_directory),
        Tokenizer.load(tokenizer_directory),
        ShardSet.open(built).names,
    )
    assert len(names.offsets) == graph.num_names + 1
    for number in range(graph.num_names):
        expected = tokenizer.encode(graph.name(number)).ids.tolist()[:6]
        assert names.tokens[names.offsets[number] : names.offsets[number + 1]].tolist() == expected


def test_counts(built, corpora):
    documents = [d for corpus in corpora for d in corpus.documents(ReadReport())]
    values = statistics(built)
    assert values["documents"] == len(documents) == 105
    assert values["mentions"] == sum(len(d.mentions) for d in documents)
    linked = [m for d in documents for m in d.mentions if m.ids and m.ids != ("C9999999",)]
    assert values["linked_mentions"] == len(linked)
    assert values["passages"] == len(ShardSet.open(built).samples)
    assert values["shards"] == len(list(built.glob("*.tar")))


def test_the_index_is_rebuilt_from_the_tars(built, tmp_path):
    copy = shutil.copytree(built, tmp_path / "copy")
    (copy / "index.json").unlink()
    (copy / "samples.npy").unlink()
    reindex(copy)
    assert contents(copy) == contents(built)


def test_keep_unlinked_keeps_every_passage(tmp_path, corpora, graph_directory, tokenizer_directory):
    settings = BuildSettings(max_tokens=48, keep_unlinked=True)
    build_shards(corpora[:1], graph_directory, str(tokenizer_directory), tmp_path / "all", settings)
    shards = ShardSet.open(tmp_path / "all")
    assert len({shards.key(row).rsplit("_", 1)[0] for row in range(len(shards.samples))}) == 60
    assert lint(tmp_path / "all", graph_directory) == []


def test_a_broken_input_among_others_is_skipped_and_named(tmp_path, corpora, graph_directory, tokenizer_directory):
    broken = tmp_path / "broken.txt"
    broken.write_text("1|t|Short\n1\t3\t99\tx\ty\tC0000001\n")
    result = build_shards(
        [corpora[0], Corpus("pubtator", broken), corpora[2]],
        graph_directory,
        str(tokenizer_directory),
        tmp_path / "s",
        SETTINGS,
    )
    assert len(result.failures) == 1
    assert "broken.txt:2" in result.failures[0]
    assert statistics(tmp_path / "s")["documents"] == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1|t|Short\n1\t3\t99\tx\ty\tC0000001\n", r"broken.txt:2: .*is outside"),
        ("1|t|Short\n1\t0\t5\tShort\ty\tX1\n", r"none of 1 mentions is linked to a concept"),
        ("", r"contains no documents; check that its format is pubtator"),
        ("1|t|Heart failure\n", r"none of 1 documents has mentions; .* with --link dictionary$"),
    ],
)
def test_an_unusable_input_is_refused_and_nothing_is_written(
    tmp_path, graph_directory, tokenizer_directory, text, message
):
    path = tmp_path / "broken.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        build_shards([Corpus("pubtator", path)], graph_directory, str(tokenizer_directory), tmp_path / "s", SETTINGS)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["broken.txt"]


def test_text_without_mentions_is_refused_with_the_dictionary_as_remedy(tmp_path, graph_directory, tokenizer_directory):
    path = tmp_path / "plain.jsonl"
    path.write_text('{"id": 1, "text": "Synonym 7 and synonym 8."}\n{"id": 2, "title": "synonym 9", "abstract": ""}\n')
    arguments = (graph_directory, str(tokenizer_directory), tmp_path / "s", SETTINGS)
    with pytest.raises(InputError, match=r"plain.jsonl: none of 2 documents has mentions; .* with --link dictionary$"):
        build_shards([Corpus("jsonl", path)], *arguments)
    other = tmp_path / "linked.jsonl"
    other.write_text('{"id": 3, "text": "renal", "mentions": [{"start": 0, "end": 5, "id": "C0000001"}]}')
    report = build_shards([Corpus("jsonl", path), Corpus("jsonl", other)], *arguments).report
    assert report["remarks"] == [f"{path}: --link dictionary finds names of the graph: files without mentions"]
    build_shards([Corpus("jsonl", path, "dictionary")], *arguments)
    assert statistics(tmp_path / "s")["linked_mentions"] == 3
    path.write_text('{"id": 1, "text": "Nothing known."}\n')
    with pytest.raises(InputError, match=r"none of 1 documents contains a name of .*graph"):
        build_shards([Corpus("jsonl", path, "dictionary")], *arguments)
