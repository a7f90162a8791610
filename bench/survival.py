"""Interrupts and resumes runs: losses and weights after 100 steps must equal those of an uninterrupted run.

    python bench/survival.py --kills 100 --terms 20 --full-disks 20

kill -9 hits ranks, loader workers and the launcher, also in the middle of a save. SIGTERM is sent to the launcher and
to ranks, also during validation and during a save; each must leave a complete checkpoint, the right exit status and
no process. Disks are full temporarily, or permanently from some step on: the first costs time, the second ends the
run with its own status, and the run resumes when there is space again. A second job in the directory of a run is
refused, and the run does not notice. A loader worker that hangs ends the run with a checkpoint, at once if SIGTERM
comes too. A server sends its shards slowly and not always to their end, or from some tar on one byte every five
seconds: the first costs time, the second ends the run, which resumes when the server has recovered.

The model is tiny, and ranks are forks of one process that has imported everything, under a launcher that behaves like
DeepSpeed's (`tests/system` uses the real one), so that a start takes one second instead of ten.
"""

import argparse
import contextlib
import errno
import itertools
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

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
from bali_ds.errors import MISTAKE, NOT_SAVED, STOPPED, InputError, RunEnded, exit_status  # noqa: E402
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
# Fraction of tars that a slow server does not send to their end.
BROKEN_OFF = 0.2
# After so many minutes without data a run ends, where it is meant to.
SHORT_WAIT = 0.1


def make_data(folder: Path) -> None:
    """Build graph and shards of the sample, and a minimal encoder."""
    source = REPOSITORY / "shards/sample"
    bali_ds(["graph", "build", "--rrf", str(source), "--out", str(folder / "graph")])
    bali_ds([
        "shards", "build", "--graph", str(folder / "graph"), "--corpus", f"pubtator:{source}/corpus.pubtator",
        "--tokenizer", str(source / "encoder"), "--validation", "0.05", "--shard-samples", "100",
        "--out", str(folder / "shards"),
    ])  # fmt: skip
    shutil.copytree(source / "encoder", folder / "encoder")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = json.loads((folder / "encoder/config.json").read_text())
    (folder / "encoder/config.json").write_text(json.dumps(config | shape))


def make_recipe(
    folder: Path,
    name: str,
    stage: int,
    steps: int,
    *,
    shards: str | None = None,
    retry_minutes: float = 0.5,
    data_minutes: float = 30,
) -> Recipe:
    """Return the recipe of a run, with dropout."""
    return Recipe.model_validate(
        {
            "name": name,
            "runs": folder / "runs",
            "data": {"graph": folder / "graph", "shards": shards or str(folder / "shards"), "workers": 1},
            "text_encoder": {"path": str(folder / "encoder"), "weights": "random"},
            "optimizer": {"text_learning_rate": 1e-3, "graph_learning_rate": 1e-3},
            "batch": {"passages": 8},
            "steps": steps,
            "precision": "fp32",
            "deepspeed": REPOSITORY / f"ds_configs/zero{stage}.json",
            "checkpoints": {"every": EVERY, "retry_minutes": retry_minutes},
            "validation": {"every": 2 * EVERY, "passages": 16},
            "fault_tolerance": {"data_minutes": data_minutes},
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
    except (InputError, RunEnded) as ended:
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


class ShardServer:
    """Server of the shards in a folder, a process of its own.

    `/NAME/FILE` comes slowly and is broken off now and then. `/NAME/COUNT/FILE` comes as fast as it can, until as many
    tars were requested; the next one comes at a byte every five seconds, until `recover(NAME)`.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), ShardRequest)
        ShardRequest.folder, ShardRequest.draw = folder, random.Random(seed)
        self._folder, self._port = folder, server.server_address[1]
        self._process = fork(server.serve_forever)
        server.server_close()

    def url(self, run: str, count: int | None = None) -> str:
        """Return the URL of the shards for a run."""
        return f"http://127.0.0.1:{self._port}/{run}" + ("" if count is None else f"/{count}")

    def recover(self, run: str) -> None:
        """Send everything to a run at full speed from now on."""
        (self._folder / f"{run}.recovered").touch()

    def close(self) -> None:
        """End the process."""
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)


class ShardRequest(BaseHTTPRequestHandler):
    """A request for a file of the shards; see `ShardServer`."""

    folder: Path
    draw: random.Random
    tars: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        """Send a file."""
        run, *count, name = self.path.strip("/").split("/")
        content = (self.folder / "shards" / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        is_tar = name.endswith(".tar")
        with contextlib.suppress(ConnectionError):
            if not count:
                self._send_slowly(
                    content[: len(content) // 2] if is_tar and self.draw.random() < BROKEN_OFF else content
                )
                return
            self.tars[run] += is_tar
            sent = 0
            while is_tar and self.tars[run] > int(count[0]) and not (self.folder / f"{run}.recovered").exists():
                self.wfile.write(content[sent : sent + 1])
                sent += 1
                time.sleep(5)
            self.wfile.write(content[sent:])

    def _send_slowly(self, content: bytes) -> None:
        for begin in range(0, len(content), 1 << 16):
            time.sleep(self.draw.uniform(0, 0.1))
            self.wfile.write(content[begin:][: 1 << 16])

    def log_message(self, *_: object) -> None:
        """Print nothing."""


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


def turns(count: int, until: float) -> Iterator[int]:
    """Yield the numbers below a count, until a time."""
    return itertools.takewhile(lambda _: time.monotonic() < until, range(count))


class Trial:
    """Interrupts runs of one ZeRO stage after another and compares what comes out."""

    def __init__(self, folder: Path, steps: int, seed: int) -> None:
        self.folder, self.steps = folder, steps
        self.draw = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.expected: dict[int, list[tuple[int, float]]] = {}
        self.checkpoints: dict[int, Path] = {}
        self.seconds: dict[int, float] = {}
        self.number = self.starts = 0

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

    def recipe(self, stage: int, **changes: Any) -> Recipe:
        """Return the recipe of another run."""
        self.number += 1
        return make_recipe(self.folder, f"run-{self.number}", stage, self.steps, **changes)

    def start(self, recipe: Recipe, fails: Callable[[int], bool] | None = None) -> Job:
        """Start or resume a run, on a disk that may fail."""
        self.starts += 1
        return Job(recipe, self.folder / f"{recipe.name}-{self.starts}.log", fails)

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
                    self.counts["processes left behind"] += 1
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

    def terminations(self, stage: int, count: int, until: float) -> None:
        """Send SIGTERM so often, each time to a run that has taken a step."""
        recipe = self.recipe(stage)
        for turn in turns(count, until):
            target = ("launcher", "rank")[turn % 2]
            when = ("any time", "evaluation", "save")[turn % 3]
            job = self.start(recipe)
            self.wait_for_a_step(job)
            if not moment(job, self.draw, when, self.seconds[stage] / count) or not (found := job.processes(target)):
                job.wait()
                self.compare(recipe, stage)
                recipe = self.recipe(stage)
                continue
            taken = self.steps_taken(recipe)
            os.kill(found[0], signal.SIGTERM)
            ended = job.wait()
            # a launcher that dies of the signal has no status of its own
            right = job.status == (-signal.SIGTERM if target == "launcher" else STOPPED)
            good = ended and self.has_saved(recipe, taken) and (right or job.status == 0)
            self.record("SIGTERMs", good, f"to {target}, {when}: ended {ended}, step {taken}", job)
            if job.status == 0:
                self.compare(recipe, stage)
                recipe = self.recipe(stage)

    def full_disks(self, stage: int, count: int, until: float) -> None:
        """Run so often on a disk that is full; every other time for good, from some checkpoint on."""
        for turn in turns(count, until):
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
            self.record("full disks", good, "now and then" if now_and_then else f"from step {last_room + 1} on", job)
            if good:
                self.compare(recipe, stage)

    def second_jobs(self, stage: int, count: int, until: float) -> None:
        """Start so many runs, and each a second time, at once or in its first half; one of the two must be refused."""
        for turn in turns(count, until):
            recipe = self.recipe(stage)
            jobs = [self.start(recipe)]
            time.sleep(self.draw.uniform(0, self.seconds[stage] / 2) if turn % 2 else 0)
            jobs.append(self.start(recipe))
            ended = [job.wait() for job in jobs] == [True, True]
            refused = [job for job in jobs if job.status == MISTAKE and "is in use by process" in job.log.read_text()]
            good = ended and len(refused) == 1 and sorted(job.status for job in jobs) == [0, MISTAKE]
            self.record("second jobs", good, f"ended {ended}, {[job.status for job in jobs]}", jobs[1])
            if good:
                self.compare(recipe, stage)

    def hung_workers(self, stage: int, count: int, until: float) -> None:
        """Stop a loader worker so often; every other time the run gets SIGTERM too and does not wait."""
        turn = 0
        while turn < count and time.monotonic() < until:
            terminated = turn % 2 == 1
            recipe = self.recipe(stage, data_minutes=30 if terminated else SHORT_WAIT)
            job = self.start(recipe)
            self.wait_for_a_step(job)
            if moment(job, self.draw, "any time", self.seconds[stage] / 2) and (found := job.processes("worker")):
                os.kill(self.draw.choice(found), signal.SIGSTOP)
                if terminated:
                    time.sleep(1)
                    signal_all({self.draw.choice(job.processes("rank"))}, signal.SIGTERM)
                self.resumes("hung workers", job, stage)
                turn += 1

    def slow_servers(self, stage: int, count: int, until: float) -> None:
        """Read shards from a slow server so often; every other time it nearly falls silent at some tar."""
        server = ShardServer(self.folder, self.draw.randrange(2**32))
        tars = len(list((self.folder / "shards").glob("train-*.tar")))
        try:
            for turn in turns(count, until):
                name = f"run-{self.number + 1}"
                if turn % 2 == 0:
                    recipe = self.recipe(stage, shards=server.url(name))
                    job = self.start(recipe)
                    good = job.wait() and job.status == 0
                    self.record("slow servers", good, "all the time", job)
                    if good:
                        self.compare(recipe, stage)
                else:
                    url = server.url(name, self.draw.randrange(tars // 2))
                    job = self.start(self.recipe(stage, shards=url, data_minutes=SHORT_WAIT))
                    self.resumes("slow servers", job, stage, lambda name=name: server.recover(name))
        finally:
            server.close()

    def resumes(self, what: str, job: Job, stage: int, mend: Callable[[], None] = lambda: None) -> None:
        """Check that a job ends by itself with all of its steps saved, and resumes once its fault is mended."""
        recipe = job.recipe
        good = job.wait() and job.status in (STOPPED, 0) and self.has_saved(recipe, self.steps_taken(recipe))
        if good:
            mend()
            patient = recipe.fault_tolerance.model_copy(update={"data_minutes": 30})
            job = self.start(recipe.model_copy(update={"fault_tolerance": patient}))
            good = job.wait() and job.status == 0
        self.record(what, good, f"ended {job.over()}", job)
        if good:
            self.compare(recipe, stage)

    def record(self, what: str, good: bool, how: str, job: Job) -> None:
        """Count a trial; describe one that did not end as promised."""
        self.counts[f"{what} survived" if good else f"{what} not survived"] += 1
        if not good:
            print(f"{what}, {how}: status {job.status}: {job.log.read_text()[-3000:]}", flush=True)

    def wait_for_a_step(self, job: Job) -> None:
        """Return when a job has taken a step, or has ended."""
        before = self.steps_taken(job.recipe)
        while self.steps_taken(job.recipe) == before and not job.over():
            time.sleep(0.01)

    @staticmethod
    def has_saved(recipe: Recipe, step: int) -> bool:
        """Return whether a run has a complete checkpoint of a step or a later one; nothing is saved before step 1."""
        saved = complete_checkpoints(recipe.directory / "checkpoints")
        return step == 0 or (bool(saved) and checkpoint_step(saved[0]) >= step)

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
    parser.add_argument("--second-jobs", type=int, default=4)
    parser.add_argument("--hung-workers", type=int, default=4)
    parser.add_argument("--slow-servers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=1000.0, help="start nothing more after so long")
    parser.add_argument("--stages", type=int, nargs="+", default=STAGES, choices=(0, *STAGES))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--no-json", action="store_true", help="do not write bench/results/survival.json")
    options = parser.parse_args()
    stages = tuple(options.stages)
    with tempfile.TemporaryDirectory() as name:
        os.environ["BALI_DS_CACHE"] = f"{name}/cache"
        trial = Trial(Path(name), options.steps, options.seed)
        make_data(Path(name))
        trial.straight(stages)
        begun = time.monotonic()

        def until(share: float) -> float:
            return begun + share * 60 * options.minutes

        for place, stage in enumerate(stages):
            part = (place + 1) / len(stages)
            trial.kills(stage, len(range(place, options.kills, len(stages))), until(0.5 * part))
        for place, stage in enumerate(stages):
            part = (place + 1) / len(stages)
            trial.full_disks(stage, len(range(place, options.full_disks, len(stages))), until(0.5 + 0.2 * part))
        trial.terminations(stages[0], options.terms, until(0.8))
        trial.second_jobs(stages[0], options.second_jobs, until(0.86))
        trial.hung_workers(stages[0], options.hung_workers, until(0.93))
        trial.slow_servers(stages[0], options.slow_servers, until(1.0))
    counts = dict(sorted(trial.counts.items()))
    failed = any(name.endswith(("that differ", "left behind", "not survived")) for name in counts)
    if not options.no_json:
        write_json(REPOSITORY / "bench/results/survival.json", {"seed": options.seed, "steps": options.steps, **counts})
    print(f"seed {options.seed}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
