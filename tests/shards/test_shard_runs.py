"""Builds in several processes, on MPI ranks, and interrupted at any moment give the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from bali_ds.errors import InputError
from bali_ds.shards import build as build_module
from bali_ds.shards.build import build_shards
from bali_ds.shards.build_settings import BuildSettings, Corpus
from bali_ds.shards.pools import open_pool
from bali_ds.shards.shard_set import ShardSet

from .conftest import SETTINGS, write_corpus

KILLS = int(os.environ.get("BALI_KILLS", "6"))


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_two_workers_give_the_bytes_of_one(built, tmp_path, corpora, graph_directory, tokenizer_directory):
    with open_pool(2) as pool:
        build_shards(corpora, graph_directory, str(tokenizer_directory), tmp_path / "two", SETTINGS, pool)
    assert contents(tmp_path / "two") == contents(built)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_mpi_ranks_give_the_bytes_of_one_process(built, ranks, tmp_path, corpora, graph_directory, tokenizer_directory):
    launcher = shutil.which("mpirun", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    if launcher is None:
        pytest.skip("mpirun is not installed")
    values = {"max-tokens": 48, "stored-fan-out": 8, "shard-samples": 32, "validation": 0.2, "max-name-tokens": 6}
    command = [
        launcher, "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), sys.executable, "-m", "bali_ds",
        "shards", "build", "--mpi", "--graph", graph_directory, "--tokenizer", tokenizer_directory,
        "--out", tmp_path / "mpi", *(f"--{name}={value}" for name, value in values.items()),
        "--corpus", *(f"pubtator:{corpus.path}" for corpus in corpora),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "mpi") == contents(built)


def test_killed_at_any_moment_and_run_again(
    built, tmp_path, corpora, graph_directory, tokenizer_directory, monkeypatch
):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    out = tmp_path / "shards"
    arguments = (corpora, graph_directory, str(tokenizer_directory), out, SETTINGS)
    start = time.monotonic()
    build_shards(*arguments)
    duration = time.monotonic() - start
    draw = random.Random(11)
    for _ in range(KILLS):
        shutil.rmtree(out)
        child = os.fork()
        if child == 0:
            build_shards(*arguments)
            os._exit(0)
        time.sleep(draw.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if out.exists():
            ShardSet.open(out)
        build_shards(*arguments)
        assert contents(out) == contents(built)
        assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_resumed_build_does_not_rebuild_parts(
    built, tmp_path, corpora, graph_directory, tokenizer_directory, monkeypatch
):
    out = tmp_path / "shards"
    arguments = (corpora, graph_directory, str(tokenizer_directory), out, SETTINGS)
    real, built_paths = build_module.build_part, []

    def interrupted(task, target):
        if built_paths:
            raise KeyboardInterrupt
        built_paths.append(task.corpus.path)
        real(task, target)

    monkeypatch.setattr(build_module, "build_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_shards(*arguments)
    monkeypatch.setattr(
        build_module, "build_part", lambda task, target: (built_paths.append(task.corpus.path), real(task, target))
    )
    build_shards(*arguments)
    assert built_paths == [corpus.path for corpus in corpora]
    assert contents(out) == contents(built)


def test_two_builds_of_one_set_at_once_are_refused(tmp_path, corpora, graph_directory, tokenizer_directory):
    with (
        build_module._working_directory(tmp_path / "s"),
        pytest.raises(InputError, match="another build of it is running"),
    ):
        build_shards(corpora, graph_directory, str(tokenizer_directory), tmp_path / "s", SETTINGS)


def citation(pmid, text):
    return (
        f"<PubmedArticle><MedlineCitation><PMID>{pmid}</PMID><Article><ArticleTitle>{text}</ArticleTitle></Article>"
        "</MedlineCitation></PubmedArticle>"
    )


def test_updates_deletions_and_duplicates(tmp_path, concept_names, graph_directory, tokenizer_directory):
    """MEDLINE with the dictionary linker: a corrected citation, a deleted one, and two of equal text."""
    name = {number: concept_names[f"C{number:07d}"][1] for number in range(4)}
    baseline = [citation(1, f"Old {name[0]}."), citation(2, f"Bad {name[1]}."), citation(3, f"Same {name[2]}.")]
    updates = [citation(1, f"New {name[3]}."), citation(4, f"Same {name[2]}.")]
    deleted = "<DeleteCitation><PMID>2</PMID></DeleteCitation>"
    (tmp_path / "a.xml").write_text(f"<PubmedArticleSet>{''.join(baseline)}</PubmedArticleSet>")
    (tmp_path / "b.xml").write_text(f"<PubmedArticleSet>{''.join(updates)}{deleted}</PubmedArticleSet>")
    inputs = [Corpus("medline", tmp_path / "a.xml"), Corpus("medline", tmp_path / "b.xml")]
    result = build_shards(inputs, graph_directory, str(tokenizer_directory), tmp_path / "s", BuildSettings())
    shards = ShardSet.open(tmp_path / "s")
    stored = {shards.key(row): shards.arrays(row)[1][:, 2].tolist() for row in range(len(shards.samples))}
    assert stored == {"3_000": [2], "1_000": [3]}
    assert result.report["dropped"] == {"documents_replaced_or_withdrawn": 2, "documents_with_a_text_seen_before": 1}
    assert result.index["counts"]["documents"] == 2


def test_the_concept_cap_keeps_passages_of_concepts_below_it(
    tmp_path, concept_names, graph_directory, tokenizer_directory
):
    write_corpus(tmp_path / "c.txt", concept_names, documents=150, seed=3)
    corpus = [Corpus("pubtator", tmp_path / "c.txt")]
    sets = {}
    for cap in (0, 5):
        settings = BuildSettings(max_tokens=32, concept_cap=cap)
        result = build_shards(corpus, graph_directory, str(tokenizer_directory), tmp_path / f"cap{cap}", settings)
        shards = ShardSet.open(tmp_path / f"cap{cap}")
        sets[cap] = {shards.key(row): set(shards.arrays(row)[1][:, 2].tolist()) for row in range(len(shards.samples))}
    assert set(sets[5]) < set(sets[0])
    assert result.report["dropped"]["passages_above_the_concept_cap"] == len(sets[0]) - len(sets[5])
    for concept in set().union(*sets[0].values()):
        available = sum(concept in concepts for concepts in sets[0].values())
        assert sum(concept in concepts for concepts in sets[5].values()) >= min(5, available)
