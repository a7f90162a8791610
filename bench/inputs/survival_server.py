"""A server of shards that is slow, breaks off, or nearly falls silent."""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from tests.forked import fork

# Fraction of tars that it does not send to their end.
BROKEN_OFF = 0.2


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
