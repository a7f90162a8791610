"""Opens remote files for reading: URLs that fsspec knows, and the output of commands.

`pipe:COMMAND` reads the output of a command, as in webdataset. `{name}` in it is replaced by the name of the file, for
example `pipe:ssh storage cat /data/shards/{name}`. Order and resume stay exact: like a file from a URL, the output is
stored in the cache and checked before it is read.
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
    """Return the URL or command of a file in a remote directory."""
    if location.startswith(COMMAND):
        return location.replace("{name}", shlex.quote(name))
    return f"{location.rstrip('/')}/{name}"


def open_remote(url: str) -> Any:
    """Open a URL or command for sequential reading; a source that sends nothing for 30 s raises an error."""
    if url.startswith(COMMAND):
        return _Command(url.removeprefix(COMMAND))
    # imported here, because a worker on local shards needs neither
    if url.startswith(("http://", "https://")):
        import urllib.request

        # unlike fsspec's HTTP client this one works in many threads
        return urllib.request.urlopen(url, timeout=_SECONDS_OF_SILENCE)
    import fsspec

    return fsspec.open(url, "rb")


class _Command:
    """The output of a command as a file to read; closing it kills the command and its children."""

    def __init__(self, command: str) -> None:
        self._process = subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, and b"" at the end.

        Raises:
            OSError: the command failed or wrote nothing for too long.
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
