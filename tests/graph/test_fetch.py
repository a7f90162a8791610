import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from bali_ds.cli import main
from bali_ds.errors import InputError
from bali_ds.graph.fetch import OPEN_GRAPHS, fetch

CONTENT = np.random.default_rng(1).bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one file; can close early, change its version, or refuse ranges."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.version = '"one"'
        self.ranges = True
        self.close_after: int | None = None
        self.asked: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if self.path != "/graph.obo":
            self.send_error(404)
            return
        resumed = asked and server.ranges and self.headers.get("If-Range") == server.version
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if resumed else 0
        if resumed and start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if resumed else 200)
        self.send_header("ETag", server.version)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.close_after])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def address(server: Server, name: str = "graph.obo") -> str:
    return f"http://127.0.0.1:{server.server_port}/{name}"


def test_whole_file(server, tmp_path):
    assert fetch(address(server), tmp_path / "new" / "graph.obo", DIGEST) == DIGEST
    assert (tmp_path / "new" / "graph.obo").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["graph.obo"]


def test_interrupted_download_is_resumed(server, tmp_path):
    target = tmp_path / "graph.obo"
    server.close_after = 1_000_000
    for _ in range(2):
        with pytest.raises(InputError, match="run the command again to resume"):
            fetch(address(server), target, DIGEST)
        assert not target.exists()
    fetch(address(server), target, DIGEST)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=2000000-"]


def test_new_version_starts_over(server, tmp_path):
    server.close_after = 1000
    with pytest.raises(InputError, match="closed after 1,000 of 3,000,000 bytes"):
        fetch(address(server), tmp_path / "graph.obo")
    server.close_after, server.version, server.content = None, '"two"', CONTENT[::-1]
    fetch(address(server), tmp_path / "graph.obo")
    assert (tmp_path / "graph.obo").read_bytes() == CONTENT[::-1]


def test_server_without_ranges_starts_over(server, tmp_path):
    server.close_after, server.ranges = 1000, False
    with pytest.raises(InputError, match="the connection closed"):
        fetch(address(server), tmp_path / "graph.obo")
    server.close_after = None
    assert fetch(address(server), tmp_path / "graph.obo") == DIGEST


def test_complete_part_is_not_downloaded_again(server, tmp_path):
    (tmp_path / "graph.obo.part").write_bytes(CONTENT)
    (tmp_path / "graph.obo.part.json").write_text('{"version": "\\"one\\""}')
    assert fetch(address(server), tmp_path / "graph.obo") == DIGEST


def test_files_of_the_user_and_symbolic_links_are_kept(server, tmp_path):
    (tmp_path / "graph.obo.part").write_text("the second part of my thesis")
    with pytest.raises(InputError, match=r"graph\.obo\.part: is not a partial download by bali-ds; move it"):
        fetch(address(server), tmp_path / "graph.obo")
    assert (tmp_path / "graph.obo.part").read_text() == "the second part of my thesis"
    (tmp_path / "link.obo").symlink_to("disk/graph.obo")
    fetch(address(server), tmp_path / "link.obo")
    assert (tmp_path / "link.obo").is_symlink()
    assert (tmp_path / "disk/graph.obo").read_bytes() == CONTENT


def test_wrong_checksum_is_not_kept(server, tmp_path):
    with pytest.raises(InputError, match="expected 00"):
        fetch(address(server), tmp_path / "graph.obo", "00")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line_and_status_two(server, tmp_path, capsys):
    out = ["--out", str(tmp_path / "x")]
    for name in (address(server, "nothing.obo"), "http://127.0.0.1:1/graph.obo", "nonsense", "ftp://"):
        assert main(["graph", "fetch", name, *out]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_command_prints_the_checksum(server, tmp_path, capsys):
    assert main(["graph", "fetch", address(server), "--out", str(tmp_path / "graph.obo")]) == 0
    assert DIGEST in capsys.readouterr().out


def test_known_graphs_have_secure_addresses():
    assert {"hpo", "mondo", "doid", "mesh"} <= set(OPEN_GRAPHS)
    assert all(graph.address.startswith("https://") for graph in OPEN_GRAPHS.values())
