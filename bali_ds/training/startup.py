"""Start-up of a run: join the ranks, open the inputs on each, refuse inputs that differ, start the heartbeat."""

import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import bali_ds
from bali_ds.config import Recipe
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.distributed import Ranks, all_ranks
from bali_ds.doctor.machine import package_versions
from bali_ds.errors import InputError
from bali_ds.evaluation.gold_coverage import check_evaluation_files
from bali_ds.model.text_encoder import read_configuration
from bali_ds.parsing import flattened
from bali_ds.planning.batch_plan import BatchPlan, plan_batches
from bali_ds.planning.run_data import RunData
from bali_ds.terminal import print_progress
from bali_ds.training.engine import deepspeed_settings
from bali_ds.training.heartbeat import Heartbeat
from bali_ds.training.precision import check_precision
from bali_ds.training.process_group import EXITING, joined_ranks, raise_on_every_rank
from bali_ds.training.trackers import check_trackers


class RunInputs(NamedTuple):
    """The inputs of a run that every rank has before it builds the model."""

    ranks: Ranks
    data: RunData
    batch_plan: BatchPlan
    settings: dict[str, Any]


@contextmanager
def started_run(recipe: Recipe) -> Iterator[RunInputs]:
    """Join the ranks, open the recipe's inputs on each and check that they are the same; all ranks exit together.

    An error of any rank in the block ends all ranks with the same exit status.

    Raises:
        InputError: on every rank, if the inputs of any rank are unusable or differ from those of rank 0.
    """
    EXITING.clear()
    with joined_ranks() as ranks:
        # The first collective call of every rank, also of one that calls `raise_after_joining` instead.
        with raise_on_every_rank(ranks):
            check_precision(recipe.precision, ranks.device, warn=ranks.is_first)
            if ranks.is_first:
                print_progress("opening graph and shards")
            data = RunData.open(recipe)
            if ranks.is_first:
                check_evaluation_files(recipe)
                check_trackers(recipe)
            batch_plan = plan_batches(recipe, ranks.world_size, data.shards.size("train"))
            settings = deepspeed_settings(recipe, batch_plan)
            inputs = input_values(recipe, data, settings)
        check_equal_inputs(ranks, inputs)
        check_nodes(recipe, ranks)
        with Heartbeat(ranks, 60 * recipe.fault_tolerance.host_minutes).running():
            yield RunInputs(ranks, data, batch_plan, settings)


def input_values(recipe: Recipe, data: RunData, settings: dict[str, Any]) -> dict[str, str]:
    """Return what must be equal on every rank, by its name in error messages; package versions come first."""
    packages = {"bali-ds": bali_ds.__version__, **package_versions()}
    encoder = read_configuration(recipe.text_encoder.path).to_json_string(use_diff=False)
    return {
        **{f"{package}: version": version for package, version in packages.items()},
        **{f"{key}:": str(value) for key, value in flattened(recipe.model_dump(mode="json"))},
        "deepspeed: settings with hash": _digest(json.dumps(settings, sort_keys=True, default=str)),
        "data.graph: fingerprint": data.graph.fingerprint[:12],
        "data.shards: fingerprint": data.shards.fingerprint[:12],
        "text_encoder.path: tokenizer fingerprint": Tokenizer.load(recipe.text_encoder.path).fingerprint[:12],
        "text_encoder.path: configuration with hash": _digest(encoder),
    }


def check_equal_inputs(ranks: Ranks, inputs: dict[str, str]) -> None:
    """Compare the `input_values` of all ranks; a collective call.

    Raises:
        InputError: on every rank, naming the first rank that differs from rank 0, its host and the first difference.
    """
    expected = ranks.broadcast_object(inputs)
    difference = _difference(inputs, expected)
    if ranks.all_reduce_max(difference is not None):
        EXITING.set()
        own = difference and f"rank {ranks.rank} on host {socket.gethostname()}: {difference}"
        line = next(filter(None, ranks.all_gather_object(own)))
        raise InputError(f"{line}; all hosts need the same recipe, packages, graph, shards and encoder")


def check_nodes(recipe: Recipe, ranks: Ranks) -> None:
    """Find out which ranks share a host; a collective call.

    Raises:
        InputError: on every rank, if the recipe compares the views of hosts and these have different numbers of ranks.
    """
    alike = all_ranks(ranks.device).node is not None
    if recipe.objective.contrastive.needs_nodes and not alike:
        EXITING.set()
        raise InputError(
            "objective.contrastive: negatives: node and communication: hierarchical need as many ranks on every host, "
            "numbered host by host; use negatives: all or rank, and communication: auto"
        )


def _difference(found: dict[str, str], expected: dict[str, str]) -> str | None:
    """Return the first difference from rank 0's inputs, None if there is none."""
    for name in {**expected, **found}:
        own, first = (values.get(name, "nothing") for values in (found, expected))
        if own != first:
            return f"{name} {own} differs from rank 0's {first}"
    return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
