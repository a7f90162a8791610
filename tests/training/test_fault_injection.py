"""Runs with injected faults: non-finite losses, failing disks, bad data, frozen ranks, a second job."""

import json
import math
import re
import socket
from pathlib import Path
from socket import gethostname

import pytest

from bali_ds.checkpoint.zero_reader import read_state
from bali_ds.config import Recipe
from tests.conftest import run_ranks
from tests.training.cases import DAMAGES, STAGES
from tests.weights import same_weights

pytestmark = pytest.mark.timeout(1200)


class Ended:
    """How the runs of `fault_injection_ranks.py` ended."""

    def __init__(self, out: Path, runs: Path) -> None:
        self.out, self.runs = out, runs
        self.statuses = json.loads((out / "ended.json").read_text())

    def output(self, name: str) -> str:
        return (self.out / f"logs/{name}.txt").read_text()

    def losses(self, name: str) -> list[float]:
        rows = [json.loads(line) for line in (self.runs / name / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "loss" in row]
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
        return [row["loss"] for row in rows]

    def checkpoints(self, name: str) -> list[int]:
        paths = (self.runs / name / "checkpoints").iterdir()
        return sorted(int(path.name.partition("-")[2]) for path in paths)

    def lines(self, name: str, file: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.runs / name / file).read_text().splitlines()]


@pytest.fixture(scope="module")
def ended(sample, tiny_encoder, tmp_path_factory, request) -> Ended:
    out = tmp_path_factory.mktemp(request.param)
    recipe: Recipe = sample.recipe(
        out / "runs",
        text_encoder={"path": str(tiny_encoder), "dropout": 0.0},
        batch={"passages": 8},
        steps=6,
        optimizer={"text_learning_rate": 1e-3, "graph_learning_rate": 1e-3},
        checkpoints={"every": 2},
        validation={"passages": 16},
    )
    (out / "recipe.json").write_text(recipe.model_dump_json())
    script = Path(__file__).with_name("fault_injection_ranks.py")
    run_ranks(1, script, out / "recipe.json", out, request.param, timeout=1100)
    return Ended(out, out / "runs")


def of(group: str):
    """Run a group of faults before the tests of a class."""
    return pytest.mark.parametrize("ended", [group], indirect=True, scope="module")


@of("non_finite")
class TestNonFinite:
    def test_a_nan_loss_ends_the_run_before_the_update_and_is_reported(self, ended):
        assert ended.statuses["nan"] == [3, 3]
        line = next(line for line in ended.output("nan").splitlines() if line.startswith("step 4: "))
        failure = json.loads((ended.runs / "nan/failures/step-00000004.json").read_text())
        assert failure["start"] == {"epoch": 0, "samples_seen": 24}
        assert [len(rank["samples"]) for rank in failure["ranks"]] == [4, 4]
        assert "rank 1 on " in line
        assert "rank 0 on " not in line
        assert failure["ranks"][1]["samples"][0] in line
        assert "bali-ds replay" in line
        assert ended.checkpoints("nan")[-1] == 3

    def test_the_saved_weights_are_those_before_the_failed_step(self, ended):
        newest = ended.runs / "nan/checkpoints/step-00000003"
        state = read_state(newest)
        assert state.steps == 3
        assert all(bool(math.isfinite(float(weight.tensor().detach().sum()))) for weight in state.weights.values())

    @pytest.mark.parametrize("name", ["replayed", "replayed-nan"])
    def test_the_failed_step_is_replayed(self, ended, name):
        assert ended.statuses[name] == [0]
        report = json.loads((ended.out / f"{name}.json").read_text())
        assert (report["step"], report["checkpoint"], len(report["ranks"])) == (4, 3, 2)
        assert math.isfinite(report["loss"]["loss"]) == (name == "replayed")
        assert bool(report["parameters"]) == (name == "replayed-nan")
        assert report["module"] is None

    def test_every_stage_skips_the_batch_alike(self, ended):
        expected = ended.losses("skip0")
        assert len(expected) == 6
        for stage in STAGES:
            assert ended.statuses[f"skip{stage}"] == [0, 0]
            assert ended.losses(f"skip{stage}") == pytest.approx(expected, rel=1e-5)
            assert ended.losses(f"skip{stage}-bf16") == pytest.approx(expected, rel=1e-2)
            for name in (f"skip{stage}", f"skip{stage}-bf16"):
                assert read_state(ended.runs / name / "checkpoints/step-00000006").steps == 6

    def test_a_resumed_run_skips_it_too(self, ended):
        assert ended.statuses["skip1/again"] == [0, 0]
        before = [row["loss"] for row in ended.lines("skip1", "before.jsonl") if "loss" in row]
        assert ended.losses("skip1") == before
        assert len(ended.lines("skip1", "left_out.jsonl")) == 1

    def test_a_loss_spike_returns_to_the_checkpoint_and_skips_batches(self, ended):
        assert ended.statuses["spike"] == [0, 0]
        skipped = ended.lines("spike", "left_out.jsonl")
        assert [(entry["samples_seen"], entry["reason"]) for entry in skipped] == [(40, "spike"), (48, "spike")]
        assert "the loss jumped to" in ended.output("spike")
        assert len(ended.losses("spike")) == 7
        assert max(ended.losses("spike")) < 20


@of("disks")
class TestDisks:
    def test_a_full_disk_costs_one_checkpoint_and_one_line(self, ended):
        assert ended.statuses["full"] == [0, 0]
        assert len(ended.losses("full")) == 6
        lines = [line for line in ended.output("full").splitlines() if "No space left" in line]
        assert len(lines) == 1
        assert "no checkpoint of step 2" in lines[0]
        # saved again right after the failure; every third is kept beside the newest
        assert ended.checkpoints("full") == [3, 6]

    @pytest.mark.parametrize("kind", DAMAGES)
    def test_the_newest_intact_checkpoint_is_restored_and_the_damage_reported(self, ended, kind):
        assert ended.statuses["damages"] == [0]
        results = [entry for entry in json.loads((ended.out / "damages.json").read_text()) if entry[0] == kind]
        assert len(results) >= 12
        for _, others, step, warnings in results:
            assert step == 6 - 1 - others
            assert len(warnings) == 1 + others
            assert all("not used" in line for line in warnings)


@of("last_checkpoint")
class TestLastCheckpoint:
    def equals_the_straight_run(self, ended, name):
        paths = [ended.runs / f"{each}/checkpoints/step-00000006" for each in ("straight", name)]
        return same_weights(*paths) and ended.losses(name) == ended.losses("straight")

    def test_a_run_that_waits_for_disk_space_ends_like_one_with_enough(self, ended):
        assert ended.statuses["patient"] == [0, 0]
        assert self.equals_the_straight_run(ended, "patient")
        output = ended.output("patient")
        assert output.count("No space left on device") == 1
        assert output.count("waiting up to 0.3 min for its checkpoint") == 1

    def test_without_disk_space_the_run_fails_and_reports_what_was_not_saved(self, ended):
        assert ended.statuses["full"] == [4, 4]
        output = ended.output("full")
        assert "the checkpoint of the last step, 6, was not saved: " in output
        assert "nothing was exported" in output
        assert ended.statuses["full/again"] == [0, 0]
        assert self.equals_the_straight_run(ended, "full")

    @pytest.mark.parametrize("name", ["patient", "full", "one", "stopped"])
    def test_no_step_is_repeated(self, ended, name):
        taken = [line.split("/")[0] for line in ended.output(name).splitlines() if re.match(r"step \d+/6  epoch", line)]
        assert taken == [f"step {number}" for number in range(1, 7)]

    def test_disk_space_for_one_checkpoint_is_not_enough_and_keeps_that_one(self, ended):
        assert ended.statuses["one"] == [4, 4]
        assert ended.statuses["one/again"] == [0, 0]
        assert "step 2, resumed at" in ended.output("one-again")
        assert self.equals_the_straight_run(ended, "one")

    def test_a_run_that_waits_for_disk_space_can_be_stopped(self, ended):
        assert ended.statuses["stopped"] == [75, 75]
        assert "stopped by the stop file without a new checkpoint" in ended.output("stopped")


@of("two_jobs")
class TestTwoJobs:
    @pytest.mark.parametrize("second", ["second", "afresh"])
    def test_the_second_job_ends_on_all_ranks_and_names_the_first(self, ended, second):
        assert ended.statuses[f"shared/{second}"] == [2, 2]
        output = ended.output(f"shared-{second}")
        assert f"{ended.runs / 'shared'}: is in use by process " in output
        assert f"on host {socket.gethostname()} since " in output

    def test_the_first_job_does_not_notice(self, ended):
        assert ended.statuses["shared"] == [0, 0]
        assert ended.losses("shared") == ended.losses("straight")
        assert ended.checkpoints("shared") == ended.checkpoints("straight")

    def test_a_killed_job_does_not_block_the_next_one(self, ended):
        assert ended.statuses["killed"] == [-9, -9]
        assert ended.statuses["killed/again"] == [0, 0]
        assert ended.losses("killed") == ended.losses("straight")

    def test_no_lock_file_remains(self, ended):
        assert list(ended.runs.glob(".*")) == []


@of("stops")
class TestStops:
    def test_other_ranks_and_stages_continue_with_the_same_samples(self, ended):
        assert [ended.statuses[f"moved/{part}"] for part in ("2", "1", "end")] == [[75, 75], [75], [0, 0]]
        assert ended.losses("moved") == pytest.approx(ended.losses("straight"), rel=1e-5)
        positions = [
            [row["epoch"] for row in ended.lines(name, "metrics.jsonl") if "loss" in row]
            for name in ("moved", "straight")
        ]
        assert positions[0] == positions[1]
        assert all(0 < row["communication"] < 1 for row in ended.lines("straight", "metrics.jsonl") if "loss" in row)

    def test_bad_data_stop_all_ranks_with_a_checkpoint_and_the_rank_that_read_them(self, ended):
        assert ended.statuses["data"] == [2, 2]
        output = ended.output("data")
        assert f"rank 1 on host {gethostname()}: train-000000.tar: is cut short; stopped after step 2" in output
        assert ended.checkpoints("data") == [2]


@pytest.mark.slow
@of("silence")
class TestSilence:
    @pytest.mark.parametrize("rank", [0, 1])
    def test_a_frozen_rank_ends_the_other_which_names_its_host(self, ended, rank):
        assert ended.statuses[f"frozen{rank}"] == [75]
        assert "no sign of life from host " in ended.output(f"frozen{rank}")
        assert f"(rank {rank})" in ended.output(f"frozen{rank}")

    def test_a_suspended_machine_continues(self, ended):
        assert ended.statuses["suspended"] == [0, 0]

    def test_a_step_that_takes_too_long_has_all_stacks_written(self, ended):
        assert ended.statuses["slow"] == [0, 0]
        for rank in range(2):
            stacks = (ended.runs / f"slow/stacks/rank-{rank}.txt").read_text()
            assert "step 3" in stacks
            assert "trainer.py" in stacks
