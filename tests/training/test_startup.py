"""The inputs of all ranks are compared, and the first difference is reported."""

import json
import shutil
import socket
from dataclasses import replace

import pytest

import bali_ds.training.startup as startup
from bali_ds.distributed import Ranks
from bali_ds.errors import InputError
from bali_ds.planning.run_data import RunData
from bench.inputs.fake_ranks import run_fake_ranks


@pytest.fixture
def values_of(sample, tmp_path):
    """The compared values of a recipe on the sample, after changes."""
    encoder = tmp_path / "encoder"
    shutil.copytree(sample.encoder, encoder)

    def values(settings=None, config=None, **changes):
        if config:
            given = json.loads((encoder / "config.json").read_text())
            (encoder / "config.json").write_text(json.dumps(given | config))
        recipe = sample.recipe(tmp_path, **{"text_encoder": {"path": str(encoder)}, **changes})
        return startup.input_values(recipe, RunData.open(recipe), settings or {"zero_optimization": {"stage": 1}})

    return values


def outcomes(*values):
    """What each rank raises when the ranks compare these values, None where it raises nothing."""
    found = run_fake_ranks(len(values), lambda ranks: startup.check_equal_inputs(ranks, values[ranks.rank]))
    return [error for _, error in found]


def refused(*values):
    errors = outcomes(*values)
    assert all(isinstance(error, InputError) for error in errors)
    assert len({str(error) for error in errors}) == 1
    return str(errors[0])


def test_equal_inputs_pass(values_of):
    own = values_of()
    assert outcomes(own, own, values_of()) == [None] * 3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 30}, "seed: 30 differs from rank 0's 29"),
        ({"batch": {"passages": 16, "micro_batches": 2}}, "batch.micro_batches: 2 differs from rank 0's 1"),
        ({"config": {"hidden_dropout_prob": 0.3}}, "text_encoder.path: configuration with hash "),
        ({"settings": {"zero_optimization": {"stage": 2}}}, "deepspeed: settings with hash "),
    ],
)
def test_the_first_rank_that_differs_is_named_with_what_differs(values_of, changes, named):
    own, other = values_of(), values_of(**changes)
    assert [own[name] == other[name] for name in own].count(False) == 1
    assert refused(own, own, other, other).startswith(f"rank 2 on host {socket.gethostname()}: {named}")


def test_packages_and_fingerprints_are_compared(values_of):
    own = values_of()
    for name in (
        "data.graph: fingerprint", "data.shards: fingerprint", "text_encoder.path: tokenizer fingerprint",
        "bali-ds: version", "torch: version", "deepspeed: version", "transformers: version",
        "torch-geometric: version",
    ):  # fmt: skip
        assert refused(own, own | {name: "9"}).startswith(
            f"rank 1 on host {socket.gethostname()}: {name} 9 differs from rank 0's {own[name]}"
        )


def test_a_key_that_one_rank_does_not_know_is_named(values_of):
    own = values_of()
    other = {name: value for name, value in own.items() if name != "seed:"}
    assert "seed: nothing differs from rank 0's 29" in refused(own, other)
    assert "seed: 29 differs from rank 0's nothing" in refused(other, own)


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({}, False),
        ({"negatives": "rank"}, False),
        ({"negatives": "node"}, True),
        ({"communication": "hierarchical"}, True),
        ({"communication": "hierarchical", "negatives": "rank"}, False),
        ({"negatives": "node", "weight": 0.0}, False),
    ],
)
def test_hosts_of_different_sizes_are_refused_where_the_loss_needs_equal_ones(
    sample, tmp_path, monkeypatch, settings, needed
):
    recipe = sample.recipe(tmp_path, objective={"contrastive": settings})
    ranks = Ranks(1, 3)
    startup.EXITING.clear()  # other tests leave it set
    monkeypatch.setattr(startup, "all_ranks", lambda _: replace(ranks, node=Ranks(0, 1)))
    startup.check_nodes(recipe, ranks)
    monkeypatch.setattr(startup, "all_ranks", lambda _: ranks)
    try:
        if needed:
            with pytest.raises(InputError, match="use negatives: all or rank, and communication: auto"):
                startup.check_nodes(recipe, ranks)
        else:
            startup.check_nodes(recipe, ranks)
        assert startup.EXITING.is_set() == needed
    finally:
        startup.EXITING.clear()
