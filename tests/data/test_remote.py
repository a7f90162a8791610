"""Shards over HTTP from a server that drops, delays, halves and garbles."""

import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import pytest

from bali_ds.data import batch_sampler, reader, remote, remote_io
from bali_ds.data.loader import Loader
from bali_ds.data.remote import Mirror, open_shards
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.files import sha256_file
from tests.data.test_loader import rows, same, steps

SETTINGS = StreamSettings(seed=3)
TROUBLE = ("drop", "half", "garbled", "error", "silent", "fine")


class Server(ThreadingHTTPServer):
    """Serves a directory; every file meets the troubles in order, then comes as it is."""

    daemon_threads = True

    def __init__(self, directory, troubles=()):
        super().__init__(("127.0.0.1", 0), Handler)
        self.directory, self.troubles = directory, troubles
        self.asked, self.delivered, self.gone = Counter(), Counter(), set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        """A client that goes away is part of the test."""


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self):
        path = self.server.directory / self.path.lstrip("/")
        number = self.server.asked[path.name]
        self.server.asked[path.name] += 1
        trouble = self.server.troubles[number % len(self.server.troubles)] if self.server.troubles else "fine"
        if trouble == "drop":
            return
        if trouble == "silent":
            time.sleep(2)
            return
        if trouble == "error" or path.name in self.server.gone or not path.exists():
            self.send_error(503 if path.exists() else 404)
            return
        if trouble == "slow":
            time.sleep(0.05)
        body = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if trouble == "trickle":
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
        if trouble == "endless":
            self.wfile.write(body[:-1])
            self.wfile.flush()
            time.sleep(60)
        if trouble == "half":
            self.wfile.write(body[: len(body) // 2])
            return
        self.wfile.write(bytes(9) + body[9:] if trouble == "garbled" else body)
        self.server.delivered[path.name] += trouble in ("fine", "slow")

    def log_message(self, *_):
        """Silence."""


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "_WAITS", (0.01,) * 17)
    monkeypatch.setattr(remote_io, "_SECONDS_OF_SILENCE", 0.5)


@pytest.mark.usefixtures("impatient")
def test_a_troubled_server_changes_nothing_and_leaves_no_wrong_file(data, tmp_path):
    shards, graph = data
    server = Server(shards.path, TROUBLE)
    mirrored = open_shards(server.url, cache=tmp_path)
    assert not list(mirrored.path.glob("*.tar"))
    expected = steps(data, 8, global_batch=12, settings=SETTINGS)
    found = steps((mirrored, graph), 8, global_batch=12, settings=SETTINGS)
    assert all(same(a.micro_batches, b.micro_batches) for a, b in zip(expected, found, strict=True))
    digests = {shard.name: shard.sha256 for shard in shards.shards} | shards.index["tables"]
    kept = [path for path in mirrored.path.iterdir() if path.suffix in (".tar", ".npy")]
    assert len(kept) >= 9
    assert all(sha256_file(path) == digests[path.name] for path in kept)
    assert not list(mirrored.path.glob("*.part"))
    assert set(server.delivered.values()) == {1}


def test_workers_of_a_node_fetch_each_shard_once(data, tmp_path):
    shards, graph = data
    server = Server(shards.path)
    mirrored = open_shards(server.url, cache=tmp_path)
    found = steps((mirrored, graph), 16, global_batch=12, workers=2, settings=SETTINGS)
    assert [rows(step) for step in found] == [
        rows(step) for step in steps(data, 16, global_batch=12, settings=SETTINGS)
    ]
    assert {name: count for name, count in server.asked.items() if name.endswith(".tar")} == {
        shard.name: 1 for shard in shards.shards if shard.split == "train"
    }
    again = open_shards(server.url, cache=tmp_path)
    assert again.fingerprint == shards.fingerprint
    assert server.asked["samples.npy"] == 1


def test_the_cache_stays_below_its_limit(data, tmp_path):
    shards, graph = data
    limit = 3 * max(shard.bytes for shard in shards.shards)
    mirrored = open_shards(Server(shards.path).url, cache=tmp_path, limit_bytes=limit)
    with closing(Loader(mirrored, graph, SETTINGS, global_batch=12)) as loader:
        for step, expected in zip(islice(loader, 12), steps(data, 12, global_batch=12, settings=SETTINGS), strict=True):
            assert rows(step) == rows(expected)
            assert held(mirrored) <= limit


def test_a_server_that_never_falls_silent_and_never_gets_anywhere_is_given_up(data, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_WAITS", ())
    monkeypatch.setattr(remote, "_WARM_UP_SECONDS", 1)
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"index\.json: TimeoutError: only \d+ bytes arrived in 1 s; gave up"):
        open_shards(Server(data[0].path, ["trickle"]).url, cache=tmp_path)
    assert time.monotonic() - begun < 10


def test_a_cache_that_cannot_be_written_is_one_line(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"\.lock: cannot be written: Not a directory; .*BALI_DS_CACHE"):
        open_shards(Server(data[0].path).url, cache=tmp_path / "file")


def held(mirrored):
    """Bytes of all tars of a mirror at one moment: none goes while the lock is held, and each lands once."""
    with remote.locked(mirrored.path / ".lock"):
        return sum(tar.stat().st_size for tar in mirrored.path.glob("*.tar"))


@pytest.mark.usefixtures("impatient")
def test_fetches_of_many_processes_share_one_limit(data, tmp_path):
    shards, _ = data
    limit = 2 * max(shard.bytes for shard in shards.shards)
    mirrored = open_shards(Server(shards.path, ("half", "slow", "fine")).url, cache=tmp_path, limit_bytes=limit)
    mirror = Mirror.of(mirrored)
    fetches = [threading.Thread(target=mirror.fetch, args=(shard,)) for shard in shards.shards]
    for thread in fetches:
        thread.start()
    while any(thread.is_alive() for thread in fetches):
        assert held(mirrored) <= limit
    assert 0 < held(mirrored) <= limit
    assert not list(mirrored.path.glob(".*.part"))


def test_what_a_killed_process_left_of_a_download_is_removed(data, tmp_path):
    shards, _ = data
    server = Server(shards.path)
    mirrored = open_shards(server.url, cache=tmp_path)
    server.troubles = ("endless",)
    script = (
        "import sys; from bali_ds.data.remote import Mirror\n"
        "from bali_ds.shards.shard_set import ShardSet, ShardSource\n"
        "shards = ShardSet.open(sys.argv[1], ShardSource(sys.argv[2], 1 << 30))\n"
        "Mirror.of(shards).fetch(shards.shards[0])"
    )
    killed = subprocess.Popen([sys.executable, "-c", script, str(mirrored.path), server.url])
    part = mirrored.path / f".{shards.shards[0].name}.part"
    while not part.exists() or not server.asked[shards.shards[0].name]:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert part.exists()
    server.troubles = ()
    mirror = Mirror.of(mirrored)
    mirror.fetch(shards.shards[1])
    assert not part.exists()
    mirror.fetch(shards.shards[0])
    assert sha256_file(mirrored.path / shards.shards[0].name) == shards.shards[0].sha256


def test_a_tar_that_leaves_the_cache_before_it_is_mapped_is_fetched_again(data, tmp_path, monkeypatch):
    shards, graph = data
    mirrored = open_shards(Server(shards.path).url, cache=tmp_path)
    fetch, lost = Mirror.fetch, []

    def losing(mirror, shard):
        fetch(mirror, shard)
        if shard.name not in lost:
            lost.append(shard.name)
            (mirror.path / shard.name).unlink()

    monkeypatch.setattr(Mirror, "fetch", losing)
    monkeypatch.setattr(reader.time, "sleep", lambda _: None)
    monkeypatch.setattr(batch_sampler, "_ShardPrefetcher", lambda _: None)
    found = steps((mirrored, graph), 4, global_batch=12, settings=SETTINGS)
    assert lost
    assert [rows(step) for step in found] == [rows(step) for step in steps(data, 4, global_batch=12, settings=SETTINGS)]


def test_a_limit_below_one_shard_is_an_input_error(data, tmp_path):
    with pytest.raises(InputError, match="but the cache is limited to 1000 bytes"):
        open_shards(Server(data[0].path).url, cache=tmp_path, limit_bytes=1000)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", ["samples.npy", "names.tokens.npy", "names.offsets.npy"])
def test_a_table_is_downloaded_only_as_far_as_the_index_explains(data, tmp_path, name):
    """A table of any size would otherwise fill the disk before its hash is compared."""
    source = shutil.copytree(data[0].path, tmp_path / "source")
    with open(source / name, "ab") as table:
        table.write(bytes(1 << 20))
    server = Server(source)
    with pytest.raises(InputError, match=rf"{name}: ValueError: is longer than \d+ bytes; gave up"):
        open_shards(server.url, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(f"*/{name}"))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("troubles", [("half",), ("garbled",), ("drop", "error")])
def test_a_server_that_never_delivers_stops_the_run_with_one_line(data, tmp_path, troubles):
    server = Server(data[0].path)
    mirrored = open_shards(server.url, cache=tmp_path)
    server.troubles = troubles
    with closing(Loader(mirrored, data[1], SETTINGS, global_batch=12)) as loader, pytest.raises(InputError) as caught:
        list(islice(loader, 8))
    assert str(caught.value).startswith(server.url)
    assert "\n" not in str(caught.value)
    assert not list(mirrored.path.glob("*.tar"))
    deadline = time.monotonic() + 20  # the thread that fetches ahead may still be at it
    while list(mirrored.path.glob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(mirrored.path.glob("*.part"))


@pytest.mark.usefixtures("impatient")
def test_a_url_without_shards_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"index\.json"):
        open_shards(Server(tmp_path).url, cache=tmp_path / "cache")


def test_a_command_feeds_the_same_run(data, tmp_path, caplog):
    caplog.set_level("INFO")
    piped = open_shards(f"pipe:cat {data[0].path}/{{name}}", cache=tmp_path)
    found = steps((piped, data[1]), 10, global_batch=12, workers=1, settings=SETTINGS)
    expected = steps(data, 10, global_batch=12, settings=SETTINGS)
    assert all(same(a.micro_batches, b.micro_batches) for a, b in zip(expected, found, strict=True))
    assert "downloaded and checked" in caplog.text


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("false {name}", "ended with status 1"),
        ("sleep 20; cat {path}/{name}", "wrote nothing"),
        ("head -c 100 {path}/{name}", "not valid JSON"),
    ],
)
def test_a_command_that_fails_or_falls_silent_is_an_input_error(data, tmp_path, monkeypatch, command, message):
    monkeypatch.setattr(remote, "_WAITS", (0.01,))
    monkeypatch.setattr(remote_io, "_SECONDS_OF_SILENCE", 0.2)
    with pytest.raises(InputError, match=message):
        open_shards("pipe:" + command.replace("{path}", str(data[0].path)), cache=tmp_path)


def test_names_reach_a_command_quoted_and_it_must_say_where(tmp_path):
    assert remote_io.address("pipe:cat {name}", "a; rm -r b.tar") == "pipe:cat 'a; rm -r b.tar'"
    with pytest.raises(InputError, match=r"lacks the placeholder \{name\}"):
        open_shards("pipe:cat shards.tar", cache=tmp_path)
