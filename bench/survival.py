"""Interrupts and resumes runs: losses and weights after the last step must equal those of an uninterrupted run.

    python bench/survival.py --kills 100 --terms 20 --full-disks 20

Runs take 50 steps and save every fifth; each is killed several times, wherever it is. The stages of ZeRO take turns,
except for SIGTERM. What has happened is in bench/results/survival.json after each run, and `--continue` adds what is
missing there.

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
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inputs.survival_jobs import (
    REPOSITORY,
    Job,
    fails_after,
    fails_sometimes,
    losses,
    make_data,
    make_recipe,
    moment,
    signal_all,
    steps_taken,
)
from inputs.survival_server import ShardServer

from bali_ds.checkpoint.marker import checkpoint_step, complete_checkpoints
from bali_ds.config import Recipe
from bali_ds.errors import MISTAKE, NOT_SAVED, STOPPED
from bali_ds.files import read_json, write_json
from tests.weights import same_weights

STAGES = (1, 2, 3)
VICTIMS = ("launcher", "rank", "worker")
RESULTS = REPOSITORY / "bench/results/survival.json"
# After so many minutes without data a run ends, where it is meant to.
SHORT_WAIT = 0.1


class Trial:
    """Interrupts runs and compares what comes out; the ZeRO stages take turns."""

    def __init__(
        self, folder: Path, stages: tuple[int, ...], steps: int, seed: int, counts: Counter[str], results: Path | None
    ) -> None:
        self.folder, self.stages, self.steps, self.seed = folder, stages, steps, seed
        self.counts, self.results = counts, results
        self.draw = random.Random(seed + counts.total())
        self.expected: dict[int, list[tuple[int, float]]] = {}
        self.checkpoints: dict[int, Path] = {}
        self.start_seconds: dict[int, float] = {}
        self.number = self.starts = 0

    def straight(self) -> None:
        """Run each stage once without interruption."""
        for stage in self.stages:
            job = self.start(self.recipe(stage))
            self.wait_for_a_step(job)
            self.start_seconds[stage] = time.monotonic() - job.started
            if not job.wait() or job.status:
                raise RuntimeError(job.log.read_text()[-3000:])
            self.expected[stage] = losses(job.recipe.directory)
            self.checkpoints[stage] = self.last_checkpoint(job.recipe)
            seconds = time.monotonic() - job.started
            print(f"ZeRO {stage}: {self.steps} steps without interruption, {seconds:.0f} s", flush=True)

    def killed(self) -> int:
        """Return how many processes were killed so far."""
        return sum(self.counts[f"{victim} killed"] for victim in VICTIMS)

    def done(self, what: str) -> int:
        """Return how many trials of a kind have ended so far."""
        return self.counts[f"{what} survived"] + self.counts[f"{what} not survived"]

    def stage_of(self, turn: int) -> int:
        """Return the stage whose turn it is."""
        return self.stages[turn % len(self.stages)]

    def save(self) -> None:
        """Write the counts, if that is wanted."""
        if self.results:
            write_json(self.results, {"seed": self.seed, "steps": self.steps, **+self.counts})

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

    def kills(self, count: int, until: float) -> None:
        """Kill so many processes, or as many as there is time for."""
        while self.killed() < count and time.monotonic() < until:
            stage = self.stage_of(self.number)
            recipe = self.recipe(stage)
            while True:
                job = self.start(recipe)
                before = self.killed()
                when = self.draw.choice(["start", "step", "step", "save"])
                wanted = before < count and time.monotonic() < until
                if wanted and moment(job, self.draw, when, self.steps // 4, self.start_seconds[stage]):
                    self.kill(job, self.draw.choice(["rank", "rank", "worker", "launcher"]), when)
                if not job.wait():
                    self.counts["processes left behind"] += 1
                if job.status == 0:
                    break
                if self.killed() == before:
                    raise RuntimeError(f"a resumed run failed with status {job.status}: {job.log.read_text()[-3000:]}")
            self.compare(recipe, stage)

    def kill(self, job: Job, victim: str, when: str) -> None:
        """Kill one process of a kind; before there are workers, a rank in place of one."""
        if victim == "worker" and not job.processes(victim):
            victim = "rank"
        if found := job.processes(victim):
            os.kill(self.draw.choice(found), signal.SIGKILL)
            self.counts[f"{victim} killed"] += 1
            self.counts["killed in a save"] += when == "save"

    def compare(self, recipe: Recipe, stage: int) -> None:
        """Compare a run that came to its end with the uninterrupted one."""
        same = losses(recipe.directory) == self.expected[stage] and same_weights(
            self.last_checkpoint(recipe), self.checkpoints[stage]
        )
        self.counts["runs equal bit for bit" if same else "runs that differ"] += 1
        self.save()
        print(f"ZeRO {stage}: {recipe.name} {'equals' if same else 'DIFFERS FROM'} the uninterrupted run", flush=True)

    def terminations(self, count: int, until: float) -> None:
        """Send SIGTERM so often, each time to a run that has taken a step."""
        stage = self.stages[0]
        recipe = self.recipe(stage)
        while (turn := self.done("SIGTERMs")) < count and time.monotonic() < until:
            target = ("launcher", "rank")[turn % 2]
            when = ("step", "evaluation", "save")[turn % 3]
            job = self.start(recipe)
            self.wait_for_a_step(job)
            if moment(job, self.draw, when, self.steps // 8) and (found := job.processes(target)):
                taken = steps_taken(recipe.directory)
                os.kill(found[0], signal.SIGTERM)
                ended = job.wait()
                # a launcher that dies of the signal has no status of its own
                right = job.status == (-signal.SIGTERM if target == "launcher" else STOPPED)
                good = ended and self.has_saved(recipe, taken) and (right or job.status == 0)
                self.record("SIGTERMs", good, f"to {target}, {when}: ended {ended}, step {taken}", job)
            if not job.wait():
                self.counts["processes left behind"] += 1
            if job.status == 0:
                self.compare(recipe, stage)
                recipe = self.recipe(stage)

    def full_disks(self, count: int, until: float) -> None:
        """Run so often on a disk that is full; every other time for good, from some checkpoint on."""
        while (turn := self.done("full disks")) < count and time.monotonic() < until:
            stage = self.stage_of(turn)
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

    def second_jobs(self, count: int, until: float) -> None:
        """Start so many runs, and each a second time, at once or in its first half; one of the two must be refused."""
        while (turn := self.done("second jobs")) < count and time.monotonic() < until:
            stage = self.stage_of(turn)
            recipe = self.recipe(stage)
            jobs = [self.start(recipe)]
            if turn % 2:
                moment(jobs[0], self.draw, "step", self.steps // 2)
            jobs.append(self.start(recipe))
            ended = [job.wait() for job in jobs] == [True, True]
            refused = [job for job in jobs if job.status == MISTAKE and "is in use by process" in job.log.read_text()]
            good = ended and len(refused) == 1 and sorted(job.status for job in jobs) == [0, MISTAKE]
            self.record("second jobs", good, f"ended {ended}, {[job.status for job in jobs]}", jobs[1])
            if good:
                self.compare(recipe, stage)

    def hung_workers(self, count: int, until: float) -> None:
        """Stop a loader worker so often; every other time the run gets SIGTERM too and does not wait."""
        while (turn := self.done("hung workers")) < count and time.monotonic() < until:
            stage, terminated = self.stage_of(turn), turn % 2 == 1
            recipe = self.recipe(stage, data_minutes=30 if terminated else SHORT_WAIT)
            job = self.start(recipe)
            self.wait_for_a_step(job)
            if moment(job, self.draw, "step", self.steps // 2) and (found := job.processes("worker")):
                os.kill(self.draw.choice(found), signal.SIGSTOP)
                if terminated:
                    time.sleep(1)
                    signal_all({self.draw.choice(job.processes("rank"))}, signal.SIGTERM)
                self.resumes("hung workers", job, stage)
            else:
                job.wait()

    def slow_servers(self, count: int, until: float) -> None:
        """Read shards from a slow server so often; every other time it nearly falls silent at some tar."""
        server = ShardServer(self.folder, self.draw.randrange(2**32))
        tars = len(list((self.folder / "shards").glob("train-*.tar")))
        try:
            while (turn := self.done("slow servers")) < count and time.monotonic() < until:
                stage, name = self.stage_of(turn), f"run-{self.number + 1}"
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
        good = job.wait() and job.status in (STOPPED, 0) and self.has_saved(recipe, steps_taken(recipe.directory))
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
        self.save()
        if not good:
            print(f"{what}, {how}: status {job.status}: {job.log.read_text()[-3000:]}", flush=True)

    def wait_for_a_step(self, job: Job) -> None:
        """Return when a job has taken a step, or has ended."""
        before = steps_taken(job.recipe.directory)
        while steps_taken(job.recipe.directory) == before and not job.over():
            time.sleep(0.01)

    @staticmethod
    def has_saved(recipe: Recipe, step: int) -> bool:
        """Return whether a run has a complete checkpoint of a step or a later one; nothing is saved before step 1."""
        saved = complete_checkpoints(recipe.directory / "checkpoints")
        return step == 0 or (bool(saved) and checkpoint_step(saved[0]) >= step)


def parsed() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=9)
    parser.add_argument("--terms", type=int, default=6)
    parser.add_argument("--full-disks", type=int, default=4)
    parser.add_argument("--second-jobs", type=int, default=4)
    parser.add_argument("--hung-workers", type=int, default=4)
    parser.add_argument("--slow-servers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=1000.0, help="start nothing more after so long")
    parser.add_argument("--stages", type=int, nargs="+", default=STAGES, choices=(0, *STAGES))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    results = parser.add_mutually_exclusive_group()
    results.add_argument(
        "--continue", action="store_true", dest="continues", help=f"add to {RESULTS.name}, with its seed and steps"
    )
    results.add_argument("--no-json", action="store_true", help=f"do not write bench/results/{RESULTS.name}")
    return parser.parse_args()


def main() -> int:
    """Return 0 if nothing went wrong."""
    options = parsed()
    counts = Counter(read_json(RESULTS) if options.continues else {"seed": options.seed, "steps": options.steps})
    seed, steps = counts.pop("seed"), counts.pop("steps")
    with tempfile.TemporaryDirectory() as name:
        os.environ["BALI_DS_CACHE"] = f"{name}/cache"
        results = None if options.no_json else RESULTS
        trial = Trial(Path(name), tuple(options.stages), steps, seed, counts, results)
        make_data(Path(name))
        trial.straight()
        begun = time.monotonic()

        def until(share: float) -> float:
            return begun + share * 60 * options.minutes

        trial.kills(options.kills, until(0.5))
        trial.full_disks(options.full_disks, until(0.7))
        trial.terminations(options.terms, until(0.8))
        trial.second_jobs(options.second_jobs, until(0.86))
        trial.hung_workers(options.hung_workers, until(0.93))
        trial.slow_servers(options.slow_servers, until(1.0))
    counts = +counts
    failed = any(name.endswith(("that differ", "left behind", "not survived")) for name in counts)
    print(f"seed {seed}: " + ", ".join(f"{counts[what]} {what}" for what in sorted(counts)))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
