"""Checkpoints that two real ranks wrote, one for each ZeRO stage, dressed up as runs."""

import shutil
from pathlib import Path

import pytest
import yaml
from transformers import BertConfig, BertTokenizer

from tests.conftest import run_ranks
from tests.export.ranks import ALONE, CASES, STEPS
from tests.export.runs import mark

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(35))]


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with `CASE/step-00000002/` and `CASE/live.pt` for each case."""
    out = tmp_path_factory.mktemp("trained")
    for world_size, cases in ((2, CASES), (1, ALONE)):
        run_ranks(world_size, Path(__file__).with_name("ranks.py"), out, *cases)
    return out


@pytest.fixture(scope="session")
def encoder_directory(tmp_path_factory) -> Path:
    """config.json and tokenizer of the encoder that the ranks train."""
    directory = tmp_path_factory.mktemp("encoder")
    BertConfig(
        vocab_size=40, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=16,
    ).save_pretrained(directory)  # fmt: skip
    (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer(str(directory / "vocab.txt")).save_pretrained(directory)
    return directory


def write_run(run: Path, trained: Path, case: str, encoder: Path, **settings: object) -> Path:
    """Write the run directory of one case; `settings` are of the text encoder."""
    checkpoint = run / "checkpoints" / f"step-{STEPS:08d}"
    shutil.copytree(trained / case / checkpoint.name, checkpoint)
    shutil.copytree(encoder, run / "encoder")
    recipe = {
        "name": "toy",
        "data": {"graph": "graph", "shards": "shards"},
        "text_encoder": {"path": "encoder", **settings},
        "steps": 2,
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    mark(checkpoint)
    return run


@pytest.fixture
def run_of(trained, encoder_directory, tmp_path):
    """Make the run directory of one case."""
    return lambda case: write_run(tmp_path / "runs" / case, trained, case, encoder_directory)
