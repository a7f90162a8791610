"""What a directory of shards or a server says never starts a program: each attack has a canary that must not appear."""

import json
import shutil
from contextlib import closing
from hashlib import sha256
from itertools import islice

import pytest

from bali_ds.data import reader
from bali_ds.data.loader import Loader
from bali_ds.data.remote import open_shards
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.shards.shard_set import ShardSet
from tests.data.test_loader import rows, steps
from tests.data.test_remote import Server

SETTINGS = StreamSettings(seed=3)


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def hostile(data, tmp_path, canary):
    """A directory of sound shards with a file that names a command as the source of its tars."""
    directory = shutil.copytree(data[0].path, tmp_path / "hostile")
    source = {"url": f"pipe:touch {canary}; cat {data[0].path}/{{name}}", "limit_bytes": 1 << 30}
    (directory / "source.json").write_text(json.dumps(source))
    return directory


def change_index(directory, **changes):
    index = json.loads((directory / "index.json").read_text())
    (directory / "index.json").write_text(json.dumps(index | changes))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_in_a_directory_of_shards_is_ignored(data, hostile, canary, workers):
    expected = steps(data, 4, global_batch=12, settings=SETTINGS)
    found = steps((open_shards(hostile), data[1]), 4, global_batch=12, settings=SETTINGS, workers=workers)
    assert [rows(step) for step in found] == [rows(step) for step in expected]
    assert not canary.exists()


def test_a_source_in_a_directory_that_lost_its_tars_is_ignored(data, hostile, canary, monkeypatch):
    monkeypatch.setattr(reader.time, "sleep", lambda _: None)
    shards = open_shards(hostile)
    for tar in hostile.glob("*.tar"):
        tar.unlink()
    loader = Loader(shards, data[1], SETTINGS, global_batch=12)
    with closing(loader), pytest.raises(InputError, match="cannot be read"):
        list(islice(loader, 8))
    assert not canary.exists()
    with pytest.raises(InputError, match="is missing; the index lists it"):
        ShardSet.open(hostile)


def test_a_server_cannot_write_where_its_mirror_gets_its_tars_from(hostile, canary, tmp_path):
    tables = json.loads((hostile / "index.json").read_text())["tables"]
    digest = sha256((hostile / "source.json").read_bytes()).hexdigest()
    change_index(hostile, tables={"source.json": digest} | tables)
    server = Server(hostile)
    with pytest.raises(InputError, match=r"index\.json: table 'source\.json' is unknown") as caught:
        open_shards(server.url, cache=tmp_path / "cache")
    assert str(caught.value).startswith(server.url)
    assert "\n" not in str(caught.value)
    assert set(server.asked) == {"index.json"}, "nothing is fetched under a name that was not checked"
    assert not canary.exists()


@pytest.mark.parametrize("name", ["index.json", ".lock", "../names.npy", "train-000000.tar", "/etc/x", ""])
def test_only_the_known_tables_exist(hostile, name):
    change_index(hostile, tables={name: "0" * 64})
    with pytest.raises(InputError, match=r"is unknown; a shard set has samples\.npy, ") as caught:
        ShardSet.open(hostile)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tables", [[], {"samples.npy": 3}, {"samples.npy": "../" * 22}, {"samples.npy": None}])
def test_tables_that_are_not_hashes_are_refused(hostile, tables):
    change_index(hostile, tables=tables)
    with pytest.raises(InputError, match=r"not a (SHA-256|mapping)"):
        ShardSet.open(hostile)


@pytest.mark.parametrize(
    "name",
    [
        "../up.tar", "/root.tar", "a/b.tar", "a\\b.tar", ".hidden.tar", "..tar", ".tar", "-rf.tar", "$(id).tar",
        "`id`.tar", "a;id.tar", "a b.tar", "a\n.tar", "a.tar\n", "a\x1b[2J.tar", "a%2fb.tar", "a?b.tar", "a#b.tar",
        "samples.npy", "source.json", "a.tar.part", "", 7, None, ["a.tar"], "ä.tar",
    ],
)  # fmt: skip
def test_a_shard_has_a_plain_name(hostile, tmp_path, name):
    shards = json.loads((hostile / "index.json").read_text())["shards"]
    change_index(hostile, shards=[shards[0] | {"name": name}, *shards[1:]])
    server = Server(hostile)
    for opened in (lambda: ShardSet.open(hostile), lambda: open_shards(server.url, cache=tmp_path / "cache")):
        with pytest.raises(InputError, match="is not a plain file name") as caught:
            opened()
        assert str(caught.value).isprintable()
    assert set(server.asked) == {"index.json"}


def test_a_shard_is_listed_once(hostile):
    shards = json.loads((hostile / "index.json").read_text())["shards"]
    change_index(hostile, shards=[shards[0], *shards])
    with pytest.raises(InputError, match="is listed twice"):
        ShardSet.open(hostile)


@pytest.mark.parametrize("key", ["fingerprint", "graph_fingerprint"])
@pytest.mark.parametrize("value", ["../../../fled", "0" * 63, "0" * 65, "A" * 64, "\ud800" * 64, "0" * 63 + "\n"])
def test_a_fingerprint_can_be_part_of_a_path(hostile, key, value):
    change_index(hostile, **{key: value})
    with pytest.raises(InputError, match=f": {key} .* is not a SHA-256|half of a surrogate pair") as caught:
        ShardSet.open(hostile)
    assert str(caught.value).isprintable()
