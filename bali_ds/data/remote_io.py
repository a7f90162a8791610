"""How the bytes of a remote file come: from a URL that fsspec knows, or out of a command.

`pipe:COMMAND` takes what the command writes, as in webdataset; `{name}` in it stands for the file's name, as in
`pipe:ssh storage cat /data/shards/{name}`. It costs no order and no resume: like any other file it goes, whole and
checked, through the cache before it is read.
"""

import os
import select
import shlex
import signal
import subprocess
from types import TracebackType
from typing import Any, Self

from bali_ds.locations import COMMAND

_SECONDS_OF_SILENCE = 30


def address(location: str, name: str) -> str:
    """Return where a file of a remote directory is found."""
    if location.startswith(COMMAND):
        return location.replace("{name}", shlex.quote(name))
    return f"{location.rstrip('/')}/{name}"


def open_remote(url: str) -> Any:
    """Open an address for reading from end to end; a silent source is given up after a time."""
    if url.startswith(COMMAND):
        return _Command(url.removeprefix(COMMAND))
    # the rest here, since a worker on local shards needs neither
    if url.startswith(("http://", "https://")):
        import urllib.request

        # unlike fsspec's client this one is fit for many threads
        return urllib.request.urlopen(url, timeout=_SECONDS_OF_SILENCE)
    import fsspec

    return fsspec.open(url, "rb")


class _Command:
    """What a command writes, as a file to read; what it started ends with it."""

    def __init__(self, command: str) -> None:
        self._process = subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def read(self, size: int) -> bytes:
        """Return some bytes, at most `size`; none at the end.

        Raises:
            OSError: the command failed or fell silent.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _SECONDS_OF_SILENCE)[0]:
            raise TimeoutError(f"the command wrote nothing for {_SECONDS_OF_SILENCE} s")
        block: bytes = self._process.stdout.read(size)
        if not block and (status := self._process.wait(_SECONDS_OF_SILENCE)):
            raise OSError(f"the command ended with status {status}")
        return block

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
