"""Uploading: what reaches the hub, and one line when it refuses. The hub is a server of our own."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bali_ds.errors import InputError
from bali_ds.export.export_run import push


class Hub(BaseHTTPRequestHandler):
    """Answers what the client asks for when it makes a repository and commits small files."""

    server: Any

    def do_POST(self):
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self.read_chunks()
        self.server.asked.append((self.path, body))
        address = f"{self.server.url}/someone/model"
        if self.headers.get("Authorization") != "Bearer good":
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self.answer(200, {"url": address, "name": "someone/model", "id": "1"})
        elif "/preupload/" in self.path:
            files = [each["path"] for each in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            self.answer(200, {"files": modes})
        else:
            self.answer(200, {"commitUrl": f"{address}/commit/1", "commitOid": "1", "pullRequestUrl": None})

    def do_GET(self):
        self.answer(200, {"id": "someone/model", "sha": "0", "siblings": []})

    def read_chunks(self):
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Silence."""


@pytest.fixture
def hub(monkeypatch):
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.url = [], f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "onnx/model.onnx").write_text("graph")
    return tmp_path


def test_every_file_arrives_in_a_private_repository(hub, directory, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "good")
    assert push(directory, "someone/model").endswith("/someone/model")
    (created,) = (json.loads(body) for path, body in hub.asked if path == "/api/repos/create")
    assert created["visibility"] == "private"
    (commit,) = (body for path, body in hub.asked if "/commit/" in path)
    lines = [json.loads(line) for line in commit.splitlines()]
    files = [line["value"]["path"] for line in lines if line["key"] == "file"]
    assert sorted(files) == [
        "config.json",
        "onnx/model.onnx",
    ]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("token", "repository"), [("bad", "someone/model"), ("good", "no such name!")])
def test_a_refusal_is_one_line(directory, monkeypatch, token, repository):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match="--push") as caught:
        push(directory, repository)
    assert "\n" not in str(caught.value)
