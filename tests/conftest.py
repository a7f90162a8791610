"""Fixtures that tests of several folders share: real data, a small tokenizer, a small graph, the sample data set."""

import json
import os
import random
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import tokenizers

from bali_ds.cli import main
from bali_ds.config import Recipe
from bali_ds.graph.builder import build_graph
from bali_ds.graph.tables import TableSource
from tests.job_server import JobServer

REPOSITORY = Path(__file__).parents[1]
TIMEOUT_FACTOR = float(os.environ.get("BALI_TIMEOUT_FACTOR", "1"))
"""Factor of every time limit in the tests. Limits suit two idle cores; a busy or slow machine needs a larger factor."""
CONCEPTS = 60
"""Concepts C0000000 to C0000059; C0000000 is a hub."""

_TEXT = (
    "renal failure chronic acute syndrome disease kinase receptor alpha beta gamma heart liver cell growth factor "
    "binding protein inhibitor therapy patients treated with and of in the a was were found to cause increase mouse "
    "human gene expression levels response insulin diabetes cancer tumour necrosis pathway signal bone marrow"
)
WORDS = _TEXT.split(" ")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Multiply the time limit of each test by `TIMEOUT_FACTOR`."""
    for item in items:
        mark = item.get_closest_marker("timeout")
        seconds = float(mark.args[0] if mark else config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(TIMEOUT_FACTOR * seconds), append=False)


def pytest_sessionfinish() -> None:
    """End the process that forks ranks, if there was need for it."""
    if job_server.cache_info().currsize:
        job_server().close()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real corpora and graphs."""
    default = REPOSITORY.parent / "shared" / "data"
    path = Path(os.environ.get("BALI_REAL_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set BALI_REAL_DATA")
    return path


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory) -> Path:
    """A directory with the tokenizer.json of a small BERT WordPiece vocabulary."""
    draw = random.Random(5)
    text = [
        " ".join(draw.choices(WORDS, k=12)) + ". 0123456789 (abcdefghij, klmnopqrstuvwxyz; β-é)" for _ in range(400)
    ]
    wordpiece = tokenizers.BertWordPieceTokenizer(lowercase=True)
    wordpiece.train_from_iterator(text, vocab_size=300, min_frequency=1, show_progress=False)
    first, last = (("[CLS]", wordpiece.token_to_id("[CLS]")), ("[SEP]", wordpiece.token_to_id("[SEP]")))
    wordpiece._tokenizer.post_processor = tokenizers.processors.BertProcessing(last, first)
    directory = tmp_path_factory.mktemp("tokenizer")
    wordpiece.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="session")
def concept_names() -> dict[str, list[str]]:
    """The names of the small graph's concepts, preferred name first; no two concepts share one."""
    return {f"C{n:07d}": [f"{WORDS[n % 30]} {WORDS[n // 3 % 40 + 5]} {n}", f"synonym {n}"] for n in range(CONCEPTS)}


@pytest.fixture(scope="session")
def graph_directory(tmp_path_factory, concept_names) -> Path:
    """A graph of 60 concepts: a hub, a chain, random facts of three relations, and one isolated concept."""
    draw = random.Random(7)
    folder = tmp_path_factory.mktemp("graph")
    cuis = list(concept_names)
    facts = {(cuis[0], "has_part", cui, "MADE") for cui in cuis[1:50]}
    facts |= {(cuis[n], "isa", cuis[n + 1], "MADE") for n in range(1, 40)}
    facts |= {(*draw.sample(cuis[:-1], 1), "treats", *draw.sample(cuis[:-1], 1), "MADE") for _ in range(60)}
    nodes = [
        f"{cui}\t{names[0]}\t{'|'.join(names[1:])}\tT047\t\tMESH:D{n:06d}"
        for n, (cui, names) in enumerate(concept_names.items())
    ]
    columns = "cui\tpreferred_name\tsynonyms\tsemantic_types\tgroup\tsource_terms"
    (folder / "nodes.tsv").write_text("\n".join([columns, *nodes]) + "\n")
    rows = ["\t".join(fact) for fact in sorted(facts) if fact[0] != fact[2]]
    (folder / "edges.tsv").write_text("\n".join(["head_cui\trelation\ttail_cui\tsource", *rows]) + "\n")
    build_graph([TableSource(folder / "nodes.tsv", folder / "edges.tsv")], folder / "graph")
    return folder / "graph"


@dataclass(frozen=True)
class Sample:
    """The sample data set, built."""

    graph: Path
    shards: Path
    encoder: Path

    def recipe(self, runs: Path, **changes: object) -> Recipe:
        """Return a recipe for a run on the sample; `changes` replaces whole sections.

        No encoder of the tests has weights, so `text_encoder.weights` is random unless it is given.
        """
        values = {
            "name": "run",
            "runs": runs,
            "data": {"graph": self.graph, "shards": str(self.shards), "workers": 0},
            "text_encoder": {"path": str(self.encoder), "dropout": 0.0},
            "graph_encoder": {"dropout": 0.0},
            "batch": {"passages": 16},
            "steps": 3,
            "precision": "fp32",
            "deepspeed": REPOSITORY / "ds_configs/zero0.json",
            "log_every": 1,
        }
        values |= changes
        return Recipe.model_validate(values | {"text_encoder": {"weights": "random"} | values["text_encoder"]})


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Sample:
    """Graph and shards of the sample data set."""
    source, out = REPOSITORY / "shards/sample", tmp_path_factory.mktemp("sample")
    build = f"graph build --rrf {source} --out {out}/graph"
    assert main(build.split()) == 0
    build = f"shards build --graph {out}/graph --corpus pubtator:{source}/corpus.pubtator "
    build += f"--tokenizer {source}/encoder --validation 0.05 --out {out}/shards"
    assert main(build.split()) == 0
    return Sample(out / "graph", out / "shards", source / "encoder")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> Path:
    """The sample's encoder, reduced to one layer of width 16: a step takes milliseconds."""
    directory = tmp_path_factory.mktemp("tiny") / "encoder"
    shutil.copytree(REPOSITORY / "shards/sample/encoder", directory)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | shape))
    return directory


job_server = cache(JobServer)


def run_ranks(world_size: int, script: Path, *arguments: object, timeout: float = 240) -> str:
    """Run a script as the ranks of one job; return what they printed, fail where one fails or hangs.

    The ranks are forks of one process that has imported what they need. `timeout` is in seconds on an idle machine;
    `TIMEOUT_FACTOR` multiplies it.
    """
    with tempfile.NamedTemporaryFile("r", errors="replace") as log:
        status = job_server().run(
            world_size, script, [str(each) for each in arguments], Path(log.name), TIMEOUT_FACTOR * timeout
        )
        said = log.read()
    assert status == 0, f"the ranks {'hang' if status is None else 'fail'}; they printed:\n{said}"
    return said
