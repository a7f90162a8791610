"""Interrupts and resumes runs: losses and weights after 200 steps must equal those of an uninterrupted run.

    python bench/survival.py --kills 100 --terms 20 --full-disks 20

kill -9 hits ranks, loader workers and the launcher, also in the middle of a save. SIGTERM is sent to the launcher and
to ranks, also during validation and during a save; each must leave a complete checkpoint, the right exit status and
no process. Disks are full temporarily, or permanently from some step on: the first costs time, the second ends the
run with its own status, and the run resumes when there is space again. The model is tiny, and ranks are forks of one
process that has imported everything, under a launcher that behaves like DeepSpeed's (`tests/system` uses the real
one), so that a start takes one second instead of ten.
"""

import argparse
import contextlib
import errno
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))
os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
os.environ["PYTHONWARNINGS"] = "ignore"
warnings.filterwarnings("ignore")

import psutil  # noqa: E402
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine  # noqa: E402

import bali_ds.training.trainer as loop  # noqa: E402
from bali_ds.checkpoint.marker import checkpoint_step, complete_checkpoints  # noqa: E402
from bali_ds.cli import main as bali_ds  # noqa: E402
from bali_ds.config import Recipe  # noqa: E402
from bali_ds.errors import NOT_SAVED, STOPPED, RunEnded, exit_status  # noqa: E402
from bali_ds.files import write_json  # noqa: E402
from tests.forked import fork, fork_ranks  # noqa: E402
from tests.weights import same_weights  # noqa: E402

RANKS = 2
STAGES = (1, 2, 3)
EVERY = 10
GRACE = 5.0
PATIENCE = 300.0
# Fraction of writes that fail on a temporarily full disk: about half of all checkpoints.
FAILING = 0.2


def make_data(folder: Path) -> None:
    """Build graph and shards of the sample, and a minimal encoder."""
    source = REPOSITORY / "shards/sample"
    bali_ds(["graph", "build", "--rrf", str(source), "--out", str(folder / "graph")])
    bali_ds([
        "shards", "build", "--graph", str(folder / "graph"), "--corpus", f"pubtator:{source}/corpus.pubtator",
        "--tokenizer", str(source / "encoder"), "--validation", "0.05", "--out", str(folder / "shards"),
    ])  # fmt: skip
    shutil.copytree(source / "encoder", folder / "encoder")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = json.loads((folder / "encoder/config.json").read_text())
    (folder / "encoder/config.json").write_text(json.dumps(config | shape))


def make_recipe(folder: Path, name: str, stage: int, steps: int, retry_minutes: float) -> Recipe:
    """Return the recipe of a run, with dropout."""
    return Recipe.model_validate(
        {
            "name": name,
            "runs": folder / "runs",
            "data": {"graph": folder / "graph", "shards": str(folder / "shards"), "workers": 1},
            "text_encoder": {"path": str(folder / "encoder"), "weights": "random"},
            "optimizer": {"text_learning_rate": 1e-3, "graph_learning_rate": 1e-3},
            "batch": {"passages": 8},
            "steps": steps,
            "precision": "fp32",
            "deepspeed": REPOSITORY / f"ds_configs/zero{stage}.json",
            "checkpoints": {"every": EVERY, "retry_minutes": retry_minutes},
            "validation": {"every": 2 * EVERY, "passages": 16},
            "log_every": 1,
        }
    )


def fails_sometimes(draw: random.Random) -> Callable[[int], bool]:
    """Return a function that says for each write whether a temporarily full disk fails it."""
    return lambda _: draw.random() < FAILING


def fails_after(last: int) -> Callable[[int], bool]:
    """Return a function that says whether a disk is full that has no space for checkpoints after a step."""
    return lambda step: step > last


def failing_disk(fails: Callable[[int], bool]) -> None:
    """Make this process's writes of checkpoint files fail for the steps for which `fails` returns true."""
    write = TorchCheckpointEngine.save

    def save(engine: TorchCheckpointEngine, state: object, path: str) -> None:
        if fails(int(Path(path).parent.name.partition("-")[2])):
            Path(path).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(engine, state, path)

    TorchCheckpointEngine.save = save


def rank(recipe: Recipe, log: Path, fails: Callable[[int], bool] | None) -> int:
    """Train as `launch/train.py` does."""
    if fails:
        failing_disk(fails)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    evaluating = recipe.directory / "evaluating"
    validate = loop.Validator.validate

    def marked_validate(*arguments: object) -> dict[str, float]:
        evaluating.touch()
        try:
            return validate(*arguments)  # type: ignore[arg-type]
        finally:
            evaluating.unlink(missing_ok=True)

    loop.Validator.validate = marked_validate  # type: ignore[method-assign,assignment]
    try:
        loop.train(recipe)
    except RunEnded as ended:
        print(ended)
        return exit_status(ended)
    return 0


def launcher(recipe: Recipe, log: Path, fails: Callable[[int], bool] | None) -> int:
    """Start the ranks, end all when one fails, and return the first failure."""
    os.setsid()
    ranks = set(fork_ranks(RANKS, rank, recipe, log, fails))
    failure, ended_at = 0, None
    while ranks:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            ranks.discard(process)
            failure = failure or os.waitstatus_to_exitcode(status)
            if failure and ended_at is None:
                ended_at = time.monotonic()
                signal_all(ranks, signal.SIGTERM)
        elif ended_at and time.monotonic() - ended_at > GRACE:
            signal_all(ranks, signal.SIGKILL)
        time.sleep(0.02)
    return abs(failure)


def signal_all(processes: set[int], number: int) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


@dataclass
class Job:
    """One start of a run."""

    recipe: Recipe
    log: Path
    fails: Callable[[int], bool] | None = None
    group: int = 0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.group = fork(launcher, self.recipe, self.log, self.fails)

    def processes(self, kind: str) -> list[int]:
        """Return the processes of a kind: launcher, rank or worker; all for any other word."""
        found = []
        for process in psutil.process_iter(["ppid", "status"]):
            try:
                if os.getpgid(process.pid) != self.group or process.info["status"] == psutil.STATUS_ZOMBIE:
                    continue
            except ProcessLookupError:
                continue
            of = "launcher" if process.pid == self.group else "rank" if process.info["ppid"] == self.group else "worker"
            if kind in (of, "all"):
                found.append(process.pid)
        return found

    def over(self) -> bool:
        """Return whether the launcher has ended, and keep its status."""
        if not hasattr(self, "status"):
            process, status = os.waitpid(self.group, os.WNOHANG)
            if not process:
                return False
            self.status = os.waitstatus_to_exitcode(status)
        return True

    def wait(self) -> bool:
        """Return whether all processes end in time."""
        until = time.monotonic() + PATIENCE
        while not self.over() or self.processes("all"):
            if time.monotonic() > until:
                signal_all(set(self.processes("all")), signal.SIGKILL)
                return False
            time.sleep(0.05)
        return True


def losses(run: Path) -> list[tuple[int, float]]:
    """Return the loss of every step."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def moment(job: Job, draw: random.Random, when: str, longest: float) -> bool:
    """Wait for a random moment, or for the next save or validation; return whether the job still runs then."""
    sign = {"save": "checkpoints/.writing", "evaluation": "evaluating"}.get(when)
    until = time.monotonic() + (PATIENCE if sign else draw.uniform(0, longest))
    while time.monotonic() < until and not job.over():
        if sign and (job.recipe.directory / sign).exists():
            time.sleep(draw.uniform(0, 0.02))
            break
        time.sleep(0.002)
    return not job.over()


class Trial:
    """Interrupts runs of one ZeRO stage after another and compares what comes out."""

    def __init__(self, folder: Path, steps: int, seed: int) -> None:
        self.folder, self.steps = folder, steps
        self.draw = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.expected: dict[int, list[tuple[int, float]]] = {}
        self.checkpoints: dict[int, Path] = {}
        self.seconds: dict[int, float] = {}
        self.number = 0

    def straight(self, stages: tuple[int, ...]) -> None:
        """Run each stage once without interruption."""
        for stage in stages:
            job = self.start(self.recipe(stage))
            if not job.wait() or job.status:
                raise RuntimeError(job.log.read_text()[-3000:])
            self.expected[stage] = losses(job.recipe.directory)
            self.checkpoints[stage] = self.last_checkpoint(job.recipe)
            self.seconds[stage] = time.monotonic() - job.started
            print(f"ZeRO {stage}: {self.steps} steps without interruption, {self.seconds[stage]:.0f} s", flush=True)

    def recipe(self, stage: int, retry_minutes: float = 0.5) -> Recipe:
        """Return the recipe of another run."""
        self.number += 1
        return make_recipe(self.folder, f"run-{self.number}", stage, self.steps, retry_minutes)

    def start(self, recipe: Recipe, fails: Callable[[int], bool] | None = None) -> Job:
        """Start or resume a run, on a disk that may fail."""
        return Job(recipe, self.folder / f"{recipe.name}.log", fails)

    def last_checkpoint(self, recipe: Recipe) -> Path:
        """Return the checkpoint of the last step."""
        return recipe.directory / f"checkpoints/step-{self.steps:08d}"

    def kills(self, stage: int, count: int, until: float) -> None:
        """Kill runs of a stage so often, or as often as there is time for."""
        killed = 0
        while killed < count and time.monotonic() < until:
            recipe = self.recipe(stage)
            while True:
                job = self.start(recipe)
                before = killed
                victim = self.draw.choice(["rank", "rank", "worker", "launcher"])
                when = self.draw.choice(["any time", "any time", "save"])
                if killed < count and time.monotonic() < until and moment(job, self.draw, when, self.seconds[stage]):
                    killed += self.kill(job, victim, when)
                if not job.wait():
                    self.counts["left processes behind"] += 1
                if job.over() and job.status == 0:
                    break
                if killed == before:
                    raise RuntimeError(f"a resumed run failed with status {job.status}: {job.log.read_text()[-3000:]}")
            self.compare(recipe, stage)

    def kill(self, job: Job, victim: str, when: str) -> int:
        """Kill one process of a kind; return how many there were to kill."""
        found = job.processes(victim)
        if not found:
            return 0
        os.kill(self.draw.choice(found), signal.SIGKILL)
        self.counts[f"{victim} killed"] += 1
        self.counts["killed in a save"] += when == "save"
        return 1

    def compare(self, recipe: Recipe, stage: int) -> None:
        """Compare a run that came to its end with the uninterrupted one."""
        same = losses(recipe.directory) == self.expected[stage] and same_weights(
            self.last_checkpoint(recipe), self.checkpoints[stage]
        )
        self.counts["runs equal bit for bit" if same else "runs that differ"] += 1
        print(f"ZeRO {stage}: {recipe.name} {'equals' if same else 'DIFFERS FROM'} the uninterrupted run", flush=True)

    def terminations(self, stage: int, count: int) -> None:
        """Send SIGTERM so often, each time to a run that has taken a step."""
        recipe = self.recipe(stage)
        for turn in range(count):
            target = ("launcher", "rank")[turn % 2]
            when = ("any time", "evaluation", "save")[turn % 3]
            job = self.start(recipe)
            before = self.steps_taken(recipe)
            while self.steps_taken(recipe) == before and not job.over():
                time.sleep(0.01)
            if not moment(job, self.draw, when, self.seconds[stage] / count) or not (found := job.processes(target)):
                job.wait()
                self.compare(recipe, stage)
                recipe = self.recipe(stage)
                continue
            taken = self.steps_taken(recipe)
            os.kill(found[0], signal.SIGTERM)
            ended = job.wait()
            saved = complete_checkpoints(recipe.directory / "checkpoints")
            # a launcher that dies of the signal has no status of its own
            right = job.status == (-signal.SIGTERM if target == "launcher" else STOPPED)
            complete = bool(saved) and checkpoint_step(saved[0]) >= taken
            good = ended and complete and (right or job.status == 0)
            self.counts["SIGTERMs survived" if good else "SIGTERMs not survived"] += 1
            if not good:
                print(f"SIGTERM to {target}, {when}: ended {ended}, status {job.status}, {saved[:1]}, step {taken}")
            if job.status == 0:
                self.compare(recipe, stage)
                recipe = self.recipe(stage)

    def full_disks(self, stage: int, count: int) -> None:
        """Run so often on a disk that is full; every other time for good, from some checkpoint on."""
        for turn in range(count):
            last_room, chances = self.draw.randrange(self.steps), random.Random(self.draw.random())
            if now_and_then := turn % 2 == 0:
                recipe = self.recipe(stage)
                job = self.start(recipe, fails_sometimes(chances))
                good = job.wait() and job.status == 0
            else:
                recipe = self.recipe(stage, retry_minutes=0.02)
                job = self.start(recipe, fails_after(last_room))
                good = job.wait() and job.status == NOT_SAVED and not self.last_checkpoint(recipe).exists()
                job = self.start(recipe)
                good = job.wait() and job.status == 0 and good
            self.counts["full disks survived" if good else "full disks not survived"] += 1
            if good:
                self.compare(recipe, stage)
            else:
                kind = "now and then" if now_and_then else f"from step {last_room + 1} on"
                print(f"disk full {kind}: status {job.status}: {job.log.read_text()[-3000:]}")

    @staticmethod
    def steps_taken(recipe: Recipe) -> int:
        """Return the last step in metrics.jsonl."""
        path = recipe.directory / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        for line in reversed(lines):
            try:
                return int(json.loads(line)["step"])
            except ValueError:
                continue
        return 0


def main() -> int:
    """Return 0 if nothing went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=9)
    parser.add_argument("--terms", type=int, default=6)
    parser.add_argument("--full-disks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=1000.0, help="kill no more after so long")
    parser.add_argument("--stages", type=int, nargs="+", default=STAGES, choices=(0, *STAGES))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--no-json", action="store_true", help="do not write bench/results/survival.json")
    options = parser.parse_args()
    stages = tuple(options.stages)
    with tempfile.TemporaryDirectory() as name:
        trial = Trial(Path(name), options.steps, options.seed)
        make_data(Path(name))
        trial.straight(stages)
        begun, share = time.monotonic(), 60 * options.minutes / len(stages)
        for place, stage in enumerate(stages):
            count = len(range(place, options.kills, len(stages)))
            trial.kills(stage, count, begun + (place + 1) * share)
        if options.terms:
            trial.terminations(stages[0], options.terms)
        for place, stage in enumerate(stages):
            trial.full_disks(stage, len(range(place, options.full_disks, len(stages))))
    counts = dict(sorted(trial.counts.items()))
    bad = ("runs that differ", "left processes behind", "SIGTERMs not survived", "full disks not survived")
    failed = any(counts.get(key) for key in bad)
    if not options.no_json:
        write_json(REPOSITORY / "bench/results/survival.json", {"seed": options.seed, "steps": options.steps, **counts})
    print(f"seed {options.seed}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
