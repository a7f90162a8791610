"""A decoder is loaded at ZeRO stage 3 without the whole of it on any rank."""

import re
from pathlib import Path

from bali_ds.training.partition import partition_of
from tests.conftest import run_ranks
from tests.model.decoders import write_decoder

RANKS = 4
LARGE = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 64,
}  # fmt: skip


def recipe_of(sample, directory, runs):
    return sample.recipe(
        runs,
        text_encoder={"path": str(directory), "weights": "pretrained", "pooling": "last"},
        objective={"masked_language_model": {"weight": 0.0}},
    )


def test_no_rank_ever_holds_half_of_a_decoder(sample, tmp_path):
    """A quarter stays on each rank, and one weight at a time is whole."""
    directory = write_decoder(tmp_path / "llama", "llama", ["renal failure"], **LARGE)
    (tmp_path / "recipe.json").write_text(recipe_of(sample, directory, tmp_path / "runs").model_dump_json())
    said = run_ranks(RANKS, Path(__file__).with_name("partition_ranks.py"), tmp_path / "recipe.json")
    grown = [tuple(map(int, found)) for found in re.findall(r"GREW (\d+) OF (\d+)", said)]
    assert len(grown) == RANKS
    for grew, size in grown:
        assert size > 200 << 20
        # its quarter at least, so that the figure is of this load and not of nothing
        assert size / 4 <= grew < size / 2, f"{grew / 2**20:.0f} MiB of {size / 2**20:.0f}"


def test_only_decoders_at_stage_3_are_partitioned_while_they_are_loaded(sample, tmp_path):
    decoder = recipe_of(sample, write_decoder(tmp_path / "llama", "llama", ["renal failure"]), tmp_path / "runs")
    assert partition_of(decoder, {"zero_optimization": {"stage": 2}}) is None
    assert partition_of(sample.recipe(tmp_path), {"zero_optimization": {"stage": 3}}) is None
