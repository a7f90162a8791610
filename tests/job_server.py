"""Starts jobs of ranks from a process that has imported all that they need: the imports take ten seconds."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


class JobServer:
    """A process that forks jobs, one after another, until it is closed or the process that made it ends."""

    def __init__(self) -> None:
        self._answers, requests = Pipe()
        with requests:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked", str(requests.fileno())],
                env=own_environment(),
                cwd=REPOSITORY,
                pass_fds=[requests.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._answers.recv()  # the imports are done

    def run(self, world_size: int, script: Path, arguments: list[str], log: Path, timeout: float) -> int | None:
        """Run a script as ranks whose output goes to a file.

        Args:
            world_size: the number of ranks.
            script: the program.
            arguments: its arguments.
            log: the file.
            timeout: seconds after which the job is killed.

        Returns:
            The exit status, or None if the job was killed.
        """
        self._answers.send((world_size, str(script), arguments, str(log), own_environment()))
        job, in_time = self._answers.recv(), False
        try:
            in_time = self._answers.poll(timeout)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(job, signal.SIGKILL)
            status = self._answers.recv()
        return status if in_time else None

    def close(self) -> None:
        """End the process."""
        self._process.terminate()  # it is idle; forks of this process may keep its pipe open
        self._process.wait()
        self._answers.close()


def own_environment() -> dict[str, str]:
    """Return this process's environment for ranks on CPUs."""
    return {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
