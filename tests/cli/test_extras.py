"""Commands where packages of other extras are not installed: they work, or name the extra in one line."""

import json
import os
import shutil
import subprocess
import sys

from transformers import BertConfig, BertModel

from tests.conftest import REPOSITORY

BLOCKED = """
import json, sys
missing = json.loads(sys.argv[1])
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in missing else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
from bali_ds.cli import main
sys.exit(main(sys.argv[2:]))
"""
TRAINING = ["deepspeed", "tensorboard", "mpi4py", "sklearn", "matplotlib", "threadpoolctl", "polars", "lxml", "fastobo"]
MODELS = [
    "torch",
    "transformers",
    "torch_geometric",
    "safetensors",
    "faiss",
    "deepspeed",
    "tensorboard",
    "mpi4py",
    "sklearn",
]


def without(packages, *command):
    """Run a command where packages cannot be imported."""
    line = [sys.executable, "-c", BLOCKED, json.dumps(packages), *map(str, command)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment)


def test_commands_without_the_packages_of_other_extras(sample, tmp_path):
    corpus = f"pubtator:{REPOSITORY}/shards/sample/corpus.pubtator"
    build = ("shards", "build", "--graph", sample.graph, "--corpus", corpus, "--tokenizer", sample.encoder)
    assert (
        without(MODELS, "graph", "build", "--rrf", REPOSITORY / "shards/sample", "--out", tmp_path / "g").returncode
        == 0
    )
    assert without(MODELS, *build, "--out", tmp_path / "s").returncode == 0
    BertModel(BertConfig.from_pretrained(sample.encoder)).save_pretrained(tmp_path / "model")
    for file in sample.encoder.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "model")
    (tmp_path / "mentions").write_text("heart attack\n")
    encode = ("encode", "--model", tmp_path / "model", "--out", tmp_path / "vectors.npy", tmp_path / "mentions")
    assert without(TRAINING, *encode).returncode == 0
    for packages, command, remedy in (
        (MODELS, ("encode", "--model", "m", "--out", "o", "f"), "torch is not installed; {}'bali-ds[infer]'"),
        (
            ["deepspeed"],
            ("export", tmp_path, "--out", tmp_path / "o"),
            "deepspeed is not installed; {}'bali-ds[train]'",
        ),
        (["polars"], ("graph", "build", "--rrf", "r", "--out", "o"), "polars is not installed; {}'bali-ds[data]'"),
    ):
        done = without(packages, *command)
        assert (done.returncode, done.stderr) == (2, f"bali-ds: {remedy.format('install it with: pip install ')}\n")
