"""The lock of a run's directory: one job at a time trains or exports into it."""

import enum
import fcntl
import json
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from bali_ds.distributed import Ranks, machine_id
from bali_ds.errors import InputError, system_error
from bali_ds.parsing import parse_json
from bali_ds.training.process_group import raise_on_every_rank

logger = logging.getLogger(__name__)

TOUCH_SECONDS = 5.0
STALE_SECONDS = 60.0
_POLL_SECONDS = 0.5
_OWNER_BYTES = 4096
_JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")


class RunLock:
    """Lock of a run's directory, held inside the `with` block; blocks cannot be nested in one process.

    The lock is the file `.NAME.lock` beside the directory, since `--resume never` removes the directory itself. The
    file names the holder and exists while the lock is held. Its creation (O_EXCL) is atomic on network file systems
    too. A stale file, of a dead process, is recognized in two ways:

    - The holder has an fcntl lock on the file, which the kernel releases when the process dies. (Child processes would
      inherit one of flock.) While it is locked, the directory is in use. A file that was created since this machine
      booted and is not locked is stale.
    - Some network file systems do not share fcntl locks between hosts (NFS with `nolock`, Lustre without `flock`), so
      the holder also touches the file every `TOUCH_SECONDS`. A file of another machine that is not locked is stale
      when it has not been touched for `STALE_SECONDS`. Its age is the difference of two modification times of the same
      file server, since the clocks of hosts differ.

    Without fcntl locks, two hosts may take over the same file at the same moment. The one whose file was replaced
    notices at its next touch and ends the process.
    """

    def __init__(self, directory: Path) -> None:
        """Name the run's directory, which need not exist."""
        self._directory = directory
        resolved = directory.resolve()
        self._path = resolved.with_name(f".{resolved.name}.lock")
        self._descriptor = -1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> Self:
        """Acquire the lock; wait up to `STALE_SECONDS` where it takes that long to know whether the holder is dead.

        Raises:
            InputError: another process uses the directory, or the lock file cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            while not self._created():
                self._wait_until_stale()
        except OSError as error:
            raise InputError(
                f"{self._path}: the run's lock cannot be written: {system_error(error)}; remove it if no job uses the "
                "run"
            ) from error
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(TOUCH_SECONDS)
        with suppress(OSError):
            if _is(self._path, self._descriptor):
                self._path.unlink()
        os.close(self._descriptor)

    def _created(self) -> bool:
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        # Locked before it is written: a file with an owner and without a lock would look stale.
        while _lock(self._descriptor) is _Locked.ELSEWHERE:
            time.sleep(0.01)
        try:
            os.write(self._descriptor, json.dumps(_owner()).encode())
        except OSError:
            self._path.unlink()
            os.close(self._descriptor)
            raise
        return True

    def _wait_until_stale(self) -> None:
        """Return when the file is gone, or was stale and is removed.

        Raises:
            InputError: its holder is alive.
        """
        first_touched = None
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW)
            except FileNotFoundError:
                return
            try:
                locked, touched = _lock(descriptor), os.fstat(descriptor).st_mtime_ns
                owner = _read_owner(descriptor)
                if not _is(self._path, descriptor):
                    continue
                if locked is _Locked.ELSEWHERE or first_touched not in (None, touched):
                    raise InputError(
                        f"{self._directory}: is in use by {_described(owner)}; wait until it ends, or give this run "
                        "another name"
                    )
                dead = locked is _Locked.HERE and owner.get("machine") == machine_id()
                if dead or self._age(touched) > STALE_SECONDS:
                    self._path.unlink()
                    return
            finally:
                os.close(descriptor)
            if first_touched is None:
                logger.info(
                    "%s: was in use by %s; waiting up to %.0f s to see whether it still is",
                    self._directory, _described(owner), STALE_SECONDS,
                )  # fmt: skip
            first_touched = touched
            time.sleep(_POLL_SECONDS)

    def _age(self, touched: int) -> float:
        """Return the seconds since a modification time, given in nanoseconds, by the clock that set it."""
        with tempfile.TemporaryFile(dir=self._path.parent) as probe:
            return (os.fstat(probe.fileno()).st_mtime_ns - touched) / 1e9

    def _touch(self) -> None:
        while not self._ended.wait(TOUCH_SECONDS):
            try:
                replaced = not os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
                os.utime(self._descriptor)
            except OSError:
                continue  # the file server does not answer for a while, or somebody removed the lock file
            if replaced:
                print(f"{self._directory}: another job has taken over the run", file=sys.stderr, flush=True)
                os._exit(2)


@contextmanager
def locked_run(directory: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the lock of a run's directory, on rank 0 for all ranks; entering is a collective call.

    Raises:
        InputError: another process uses the directory; the same on every rank.
    """
    with ExitStack() as held:
        with raise_on_every_rank(ranks):
            if ranks.is_first:
                held.enter_context(RunLock(directory))
        yield


class _Locked(enum.Enum):
    HERE = enum.auto()
    ELSEWHERE = enum.auto()
    UNSUPPORTED = enum.auto()


def _lock(descriptor: int) -> _Locked:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return _Locked.ELSEWHERE
    except OSError:
        return _Locked.UNSUPPORTED
    return _Locked.HERE


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner() -> dict[str, str]:
    owner = {
        "host": socket.gethostname(),
        "process": str(os.getpid()),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": machine_id(),
    }
    job = next((os.environ[name] for name in _JOB_VARIABLES if os.environ.get(name)), None)
    return owner | ({"job": job} if job else {})


def _read_owner(descriptor: int) -> dict[str, str]:
    """Return what the file says of its holder; empty where it was not written yet or cannot be parsed."""
    try:
        found = parse_json(os.pread(descriptor, _OWNER_BYTES, 0), "lock")
    except InputError:
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in pairs if isinstance(value, str) and value.isprintable()}


def _described(owner: dict[str, str]) -> str:
    if not {"host", "process", "since"} <= owner.keys():
        return "another process"
    job = f", job {owner['job']}" if "job" in owner else ""
    return f"process {owner['process']} on host {owner['host']} since {owner['since']}{job}"
