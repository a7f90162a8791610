"""Any fault of one rank, at any time, ends all ranks with the same exit status."""

import json
import re
import shutil
import socket
from pathlib import Path

import pytest
import yaml

from bali_ds.checkpoint.manager import complete_checkpoints
from bali_ds.cli import main
from tests.conftest import REPOSITORY, run_ranks

pytestmark = pytest.mark.timeout(900)
RANK_1 = f"rank 1 on host {socket.gethostname()}: "


class Ended:
    """How the runs of `exit_status_ranks.py` ended."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.runs = json.loads((out / "ended.json").read_text())

    def statuses(self, name: str) -> list[int]:
        return self.runs[name]["statuses"]

    def output(self, name: str) -> list[str]:
        return [(self.out / f"{name}-{rank}.txt").read_text() for rank in range(2)]

    def line(self, name: str) -> str:
        """The one line that a run prints at its end, on rank 0."""
        first, second = self.output(name)
        (line,) = re.findall("^train: (.*)$", first, re.MULTILINE)
        assert "train: " not in second
        return line

    def tracebacks(self, name: str) -> list[int]:
        return [output.count("Traceback (most recent call last)") for output in self.output(name)]

    def checkpoints(self, name: str) -> int:
        return len(complete_checkpoints(self.out / f"runs/{name}/checkpoints"))


@pytest.fixture(scope="module")
def ended(sample, tiny_encoder, tmp_path_factory, request) -> Ended:
    out = tmp_path_factory.mktemp(request.param)
    recipe = sample.recipe(
        out / "runs",
        text_encoder={"path": "encoder", "dropout": 0.0},
        data={"graph": "graph", "shards": "shards", "workers": 0},
        batch={"passages": 64},  # a loader collates 256 samples of a rank at once: 8 steps
        steps=100_000,
        checkpoints={"every": 100_000},
        fault_tolerance={"host_minutes": 0.3},
        validation={"passages": 16},
    )
    shards = {"host": sample.shards, "host-without-shards": out / "nowhere"}
    if request.param == "start_up":
        other = shards["host-with-other-shards"] = out / "other"
        build = f"shards build --graph {sample.graph} --corpus pubtator:{REPOSITORY}/shards/sample/corpus.pubtator "
        assert main(f"{build} --tokenizer {sample.encoder} --validation 0.2 --out {other}".split()) == 0
    elif request.param == "steps":
        shards["host-with-a-copy"] = Path(shutil.copytree(sample.shards, out / "copy"))
    for host, built in shards.items():
        (out / host).mkdir()
        (out / host / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        for name, target in {"graph": sample.graph, "encoder": tiny_encoder, "shards": built}.items():
            (out / host / name).symlink_to(target)
    run_ranks(1, Path(__file__).with_name("exit_status_ranks.py"), out, request.param, timeout=800)
    return Ended(out)


def of(group: str):
    """Run a group of faults before the tests of a class."""
    return pytest.mark.parametrize("ended", [group], indirect=True, scope="module")


@of("start_up")
class TestStartUp:
    @pytest.mark.parametrize(
        ("name", "line"),
        [
            (
                "shards",
                RANK_1 + r"data\.shards: fingerprint \w{12} differs from rank 0's \w{12}; all hosts need",
            ),
            ("seed", RANK_1 + "seed: 7 differs from rank 0's 29; all hosts need the same"),
            ("full-disk", rf"rank 0 on host {socket.gethostname()}: \S+/encoder: cannot be written: File too large"),
            ("alike", "batch.passages: 15 is not divisible by 2 ranks"),
            ("config", RANK_1 + r"missing\.yaml: is not a file or the name of a recipe"),
            ("data", RANK_1 + "shards: is not a directory of shards"),
            ("directory", f"rank 0 on host {socket.gethostname()}: .*the run was started with seed: 29, now it is 8"),
        ],
    )
    def test_a_mistake_of_any_rank_is_printed_by_rank_0_and_ends_every_rank_with_2(self, ended, name, line):
        assert ended.statuses(name) == [2, 2], ended.output(name)
        assert re.match(line, ended.line(name))
        assert ended.tracebacks(name) == [0, 0]

    def test_a_refused_run_creates_no_directory(self, ended):
        assert not any((ended.out / "runs" / name).exists() for name in ("shards", "seed", "alike", "config", "data"))

    @pytest.mark.parametrize("name", ["model", "engine"])
    def test_an_unforeseen_error_of_rank_1_is_named_by_rank_0_and_ends_both_with_1(self, ended, name):
        assert ended.statuses(name) == [1, 1], ended.output(name)
        assert ended.line(name).startswith(RANK_1 + "ValueError: this value was not foreseen")
        assert ended.tracebacks(name) == [0, 1]

    def test_an_unforeseen_error_of_rank_0_ends_both_with_1(self, ended):
        assert ended.statuses("engine0") == [1, 1], ended.output("engine0")
        assert ended.tracebacks("engine0") == [1, 0]

    def test_a_signal_to_one_rank_before_the_first_step_stops_both(self, ended):
        assert ended.statuses("signal") == [75, 75], ended.output("signal")
        assert ended.line("signal").startswith(RANK_1 + "stopped by SIGTERM")

    def test_a_rank_that_is_killed_while_it_opens_its_data_ends_the_other_with_75(self, ended):
        assert ended.statuses("killed-early") == [75, -9], ended.output("killed-early")
        assert ended.line("killed-early").startswith("lost the connection to another rank")
        assert ended.tracebacks("killed-early") == [0, 0]

    @pytest.mark.parametrize("missing", [0, 1])
    def test_a_rank_that_never_joins_ends_the_other_with_75_after_a_time_limit(self, ended, missing):
        name, joined = f"missing{missing}", 1 - missing
        assert ended.statuses(name)[joined] == 75, ended.output(name)
        assert "train: not all 2 ranks met at 127.0.0.1:" in ended.output(name)[joined]
        assert ended.tracebacks(name) == [0, 0]


@of("steps")
class TestSteps:
    def test_an_unforeseen_error_in_a_step_ends_both_with_1(self, ended):
        assert ended.statuses("forward") == [1, 1], ended.output("forward")
        assert ended.line("forward").startswith(RANK_1 + "ValueError: this value was not foreseen")
        assert ended.tracebacks("forward") == [0, 1]

    def test_a_killed_rank_ends_the_other_with_75(self, ended):
        assert ended.statuses("killed") == [75, -9], ended.output("killed")
        assert ended.line("killed").startswith("lost the connection to another rank")
        assert ended.tracebacks("killed") == [0, 0]

    @pytest.mark.parametrize("name", ["worker-fails", "in-process"])
    def test_an_unforeseen_error_of_a_loader_ends_both_with_1(self, ended, name):
        assert ended.statuses(name) == [1, 1], ended.output(name)
        assert ended.tracebacks(name) == [0, 1]
        assert ended.output(name)[1].count("\nValueError: this value was not foreseen") == 1
        assert re.match(
            RANK_1 + r".*ValueError: this value was not foreseen.*; stopped after step \d+", ended.line(name)
        )
        assert ended.checkpoints(name) == 1

    def test_a_tar_that_is_cut_short_under_a_rank_ends_both_with_2_and_a_checkpoint(self, ended):
        assert ended.statuses("truncated") == [2, 2], ended.output("truncated")
        line = (
            RANK_1 + r"\S+/train-000000\.tar: cannot be read: it was truncated while in use.*; stopped after step \d+"
        )
        assert re.match(line, ended.line("truncated"))
        assert ended.tracebacks("truncated") == [0, 0]
        assert ended.checkpoints("truncated") == 1

    def test_a_killed_worker_ends_both_with_75(self, ended):
        assert ended.statuses("worker-killed") == [75, 75], ended.output("worker-killed")
        assert ended.line("worker-killed").startswith(RANK_1 + "a loader worker ended with status -9")
        assert ended.checkpoints("worker-killed") == 1

    def test_a_worker_that_crashes_by_its_own_fault_ends_both_with_1(self, ended):
        assert ended.statuses("worker-crashes") == [1, 1], ended.output("worker-crashes")
        assert "ended with status -11" in ended.line("worker-crashes")
        assert ended.checkpoints("worker-crashes") == 1


@of("waits")
class TestWaits:
    def test_sigterm_to_one_rank_while_another_waits_for_data_saves_within_seconds(self, ended):
        assert ended.statuses("sigterm") == [75, 75], ended.output("sigterm")
        assert ended.runs["sigterm"]["seconds"] < 20
        assert ended.line("sigterm").startswith("stopped by SIGTERM after step ")
        assert ended.checkpoints("sigterm") == 1

    @pytest.mark.parametrize(
        ("name", "source"),
        [
            ("deadline", r"a loader worker \(process \d+\)"),
            ("deadline-in-process", "the loader in the training process"),
        ],
    )
    def test_data_that_never_arrive_end_the_run_with_a_checkpoint_and_the_cause(self, ended, name, source):
        assert ended.statuses(name) == [75, 75], ended.output(name)
        assert re.match(RANK_1 + f"no samples for 0.1 min from {source}; stopped after step", ended.line(name))
        assert ended.checkpoints(name) == 1

    def test_max_minutes_count_while_a_rank_waits_for_data(self, ended):
        assert ended.statuses("max-minutes") == [75, 75], ended.output("max-minutes")
        assert ended.line("max-minutes").startswith("stopped by max_minutes after step ")
        assert ended.checkpoints("max-minutes") == 1
