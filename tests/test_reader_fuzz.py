"""Fuzz target: whatever the bytes of a file, its reader returns what it should, or raises InputError of one line.

`make fuzz` runs it for ten minutes.
"""

import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from bali_ds.config import load_recipe
from bali_ds.corpus.name_index import NameIndex, open_dictionary
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.data.mixture import Mixture
from bali_ds.data.reader import SampleReader
from bali_ds.doctor.deepspeed_config import load_deepspeed_config
from bali_ds.doctor.hostfile import read_hostfile
from bali_ds.errors import InputError
from bali_ds.evaluation.linking_data import read_queries
from bali_ds.evaluation.question_data import read_questions
from bali_ds.evaluation.report import write_report
from bali_ds.files import read_json, read_yaml
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.concept_dictionary import read_dictionary
from bali_ds.inference.exported_directory import read_description
from bali_ds.npy import open_npy
from bali_ds.shards.lint import lint
from bali_ds.shards.shard_set import ShardSet
from bali_ds.shards.tar_scanner import reindex
from bali_ds.terminal import message
from tests.damage import is_harmless
from tests.test_damaged_files import TAR, whole  # noqa: F401 (a fixture)

MINUTES = float(os.environ.get("BALI_FUZZ_MINUTES", "0"))
"""Minutes for all readers together, with seeds that have not been tried before; without it, a short form."""
EXAMPLES = 100
FRAGMENTS = [
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b"\t", b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"- ", b"&a ",
    b"*a", b"<<: ", b"!!set ", b"null", b"true", b"-1", b"1e400", b"NaN", b"9" * 25, b"0.5", b'"\\ud800"', b"\x1b[2J",
    b"[[[[[[[[", b"2024-01-01", b'"a": 1, "a": 2', b"../", b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8), b"|O", b"<f8",
    b"(-1,)",
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A file and what reads it.

    Attributes:
        file: the file, in the directory of sound files.
        read: reads it in that directory.
    """

    file: str
    read: Callable[[Path], object]


def same_as_json(root: Path) -> None:
    path = root / "ds.json"
    assert read_json(path) == json.loads(path.read_text(encoding="utf-8-sig"))


def same_as_yaml(root: Path) -> None:
    """Compare keys and nesting with PyYAML's plainest loader, for which every scalar is a string."""
    path = root / "recipe.yaml"
    value = read_yaml(path)
    assert outline(value) == outline(yaml.load(path.read_text(encoding="utf-8-sig"), yaml.BaseLoader))


def outline(value: object) -> object:
    if isinstance(value, dict):
        return {key: outline(each) for key, each in value.items()}
    return [outline(each) for each in value] if isinstance(value, list) else "scalar"


def same_as_numpy(root: Path) -> None:
    path = root / "shards/names.offsets.npy"
    opened = open_npy(path, "<i8", (None,), "remove it")
    assert np.array_equal(opened, np.load(io.BytesIO(path.read_bytes()), allow_pickle=False))


def every_sample(root: Path) -> None:
    shards = ShardSet.open(root / "shards")
    reader = SampleReader(Mixture.of(shards))
    samples = reader.read(np.arange(len(shards.samples)))
    assert samples.tokens.nbytes < 8 * sum(shard.bytes for shard in shards.shards)
    assert len(shards.names.offsets)
    list(shards.keys(range(len(shards.samples))))


def every_name(root: Path) -> None:
    graph = KnowledgeGraph.open(root / "graph")
    index: NameIndex = open_dictionary(root / "graph.dictionary", graph)
    found = index.longest_matches(index.keys[:64])
    for row in found.rows.tolist():
        [graph.cui(each) for each in index.concept_ids[index.offsets[row] : index.offsets[row + 1]].tolist()]


def questions(task: str, file: str) -> Target:
    return Target(file, lambda root: read_questions(task, root / file))


TARGETS = [
    Target("ds.json", same_as_json),
    Target("recipe.yaml", same_as_yaml),
    Target("shards/names.offsets.npy", same_as_numpy),
    Target("recipe.yaml", lambda root: load_recipe(root / "recipe.yaml")),
    Target("ds.json", lambda root: load_deepspeed_config(root / "ds.json")),
    Target("hostfile", lambda root: read_hostfile(root / "hostfile")),
    Target("names.txt", lambda root: read_dictionary(root / "names.txt")),
    Target("queries.tsv", lambda root: read_queries(root / "queries.tsv")),
    *(
        Target(f"run/{file}", lambda root: write_report(root / "run"))
        for file in ("recipe.yaml", "metrics.jsonl", "evaluation.json", "generated.json", "export/bali_ds.json")
    ),
    Target("run/export/bali_ds.json", lambda root: read_description(root / "run/export")),
    questions("pubmedqa", "pubmedqa.json"),
    questions("bioasq", "bioasq.json"),
    questions("medqa", "medqa.jsonl"),
    questions("medmcqa", "medmcqa.json"),
    questions("blurb", "blurb.json"),
    Target("shards/index.json", every_sample),
    Target("shards/samples.npy", every_sample),
    Target("shards/names.offsets.npy", every_sample),
    Target("shards/names.tokens.npy", every_sample),
    Target(TAR, lambda root: lint(root / "shards", root / "graph")),
    Target(TAR, lambda root: reindex(root / "shards")),
    Target("graph.dictionary/offsets.npy", every_name),
    Target("graph.dictionary/concepts.npy", every_name),
    Target("model/tokenizer.json", lambda root: Tokenizer.load(root / "model")),
]


@pytest.fixture(scope="module")
def files(whole, tmp_path_factory):  # noqa: F811
    return shutil.copytree(whole, tmp_path_factory.mktemp("fuzz") / "files")


Edits = list[tuple[float, int, bytes]]
edits: st.SearchStrategy[Edits] = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from([0, 0, 1, 2, 8, 60, 1 << 20]),
        st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=9)),
    ),
    min_size=1,
    max_size=4,
)
"""Where to edit a file, as a fraction of its size; how many bytes to remove; what to insert."""


def edited(content: bytes, changes: Edits) -> bytes:
    for place, removed, inserted in changes:
        at = math.floor(place * len(content))
        content = content[:at] + inserted + content[at + removed :]
    return content


@pytest.mark.timeout(300 + 120 * MINUTES)
@pytest.mark.parametrize("number", range(len(TARGETS)), ids=lambda number: f"{number}-{TARGETS[number].file}")
def test_a_reader_returns_or_raises_one_line(number, files):
    target = TARGETS[number]
    path = files / target.file
    content = path.read_bytes()
    others = {each: (files / each).read_bytes() for each in ("shards/index.json", "shards/samples.npy")}

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=not MINUTES, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(edits)
    def check(changes):
        path.write_bytes(edited(content, changes))
        line = ""
        try:
            target.read(files)
        except InputError as error:
            line = message(error)
        assert is_harmless(line)

    until = time.monotonic() + 60 * MINUTES / len(TARGETS)
    first = time.time_ns()
    try:
        check()
        while time.monotonic() < until:
            first += 1
            seed(first)(check)()
    finally:
        for name, old in others.items():  # `reindex` writes them
            (files / name).write_bytes(old)
        path.write_bytes(content)
