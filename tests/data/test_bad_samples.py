import json
import shutil
from contextlib import closing
from itertools import islice

import numpy as np
import pytest

from bali_ds.data import reader
from bali_ds.data.evaluation_batches import evaluation_batches
from bali_ds.data.loader import Loader
from bali_ds.data.mixture import Mixture
from bali_ds.data.reader import SampleReader
from bali_ds.data.sample_validation import REASONS
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.shards.layout import member_offsets
from bali_ds.shards.sample import Sample
from bali_ds.shards.shard_set import ShardSet
from tests.data.conftest import write_shards
from tests.data.test_loader import global_rows, rows, same, steps
from tests.shards.sample_writer import write_samples

SETTINGS = StreamSettings(seed=3, bad_samples=0.05)


def overwrite(shards, row, member, place, value, dtype="<i4"):
    """Change one number in an array of a sample, counted from where its data begin."""
    at = int(getattr(member_offsets(shards.samples[row : row + 1], 2), member)[0])
    tar = shards.path / shards.shards[int(shards.shard_numbers(row)[0])].name
    with open(tar, "r+b") as stream:
        stream.seek(at + place * np.dtype(dtype).itemsize)
        stream.write(np.array(value, dtype).tobytes())


def rewrite_table(shards, row, **fields):
    table = np.load(shards.path / "samples.npy").copy()
    for field, value in fields.items():
        table[row][field] = value
    path = shards.path / "samples.npy"
    path.write_bytes(path.read_bytes()[: -table.nbytes] + table.tobytes())


@pytest.fixture
def shards(data, tmp_path):
    return write_shards(tmp_path / "shards", data[1])


@pytest.fixture
def damaged(shards):
    """A shard set with one bad sample for each kind of damage; the rows and the reasons expected."""
    rich = [row for row in range(100) if shards.samples[row]["mentions"] > 1 and shards.samples[row]["edges"] > 2]
    expected = dict(zip(rich, [1, 1, 1, 1, 1, 1, 2, 3, 3, 3, 4, 4, 5, 5, 5, 5], strict=False))
    damages = iter(rich)
    rewrite_table(shards, next(damages), offset=2**62)
    rewrite_table(shards, next(damages), tokens=2**31 - 1)
    rewrite_table(shards, next(damages), mentions=-5)
    rewrite_table(shards, next(damages), tokens=1)
    overwrite(shards, next(damages), "tokens", -32, 0)
    overwrite(shards, next(damages), "edges", -32, 0)
    overwrite(shards, next(damages), "tokens", 2, 200, "<u2")
    overwrite(shards, next(damages), "mentions", 0, 0)
    overwrite(shards, next(damages), "mentions", 1, 2**31 - 1)
    overwrite(shards, next(damages), "mentions", 1, -1)
    overwrite(shards, next(damages), "mentions", 2, 60)
    overwrite(shards, next(damages), "mentions", 2, -1)
    overwrite(shards, next(damages), "edges", 1, 2 * 5)
    overwrite(shards, next(damages), "edges", 2, -7)
    overwrite(shards, next(damages), "edges", 0, 2**31 - 1)
    swapped = next(damages)
    overwrite(shards, swapped, "edges", 0, [*shards.arrays(swapped)[2][::-1].ravel()])
    return ShardSet.open(shards.path), expected


def test_samples_that_overlap_are_not_read_into_more_memory_than_their_tars(data, tmp_path):
    """A table whose rows all point to one large sample would multiply it."""
    row = int(np.argmax(data[0].samples["edges"]))
    tokens, mentions, edges = data[0].arrays(row)
    stored = [edges] * 15 + [np.tile(edges, (500, 1))]
    samples = [Sample(f"a{n}_000", tokens, mentions, each, {"document": "a"}) for n, each in enumerate(stored)]
    description = {key: value for key, value in data[0].index.items() if key not in ("counts", "shards", "tables")}
    for name in ("names.tokens.npy", "names.offsets.npy"):
        shutil.copyfile(data[0].path / name, tmp_path / name)
    write_samples(tmp_path, description, {"train": samples}, 16, {})
    shards = ShardSet.open(tmp_path)
    SampleReader(Mixture.of(shards)).read(np.arange(16))
    fields = {name: int(shards.samples[15][name]) for name in shards.samples.dtype.names}
    for number in range(15):
        rewrite_table(shards, number, **fields)
    with pytest.raises(InputError, match="describes more bytes than its tars have; rebuild it"):
        SampleReader(Mixture.of(ShardSet.open(tmp_path))).read(np.arange(16))


def test_every_kind_of_damage_is_met_and_replaced_the_same_everywhere(data, damaged, tmp_path):
    shards, expected = damaged
    graph = data[1]
    loose = StreamSettings(seed=3, bad_samples=1.0)
    with closing(Loader(shards, graph, loose, global_batch=20, quarantine=tmp_path / "new" / "bad.jsonl")) as loader:
        epoch = list(islice(loader, 5))
    found = {replacement.row: replacement.reason for step in epoch for replacement in step.replaced}
    assert found == {row: REASONS[reason] for row, reason in expected.items()}
    delivered = [row for step in epoch for row in rows(step)]
    assert len(delivered) == 100
    assert not set(delivered) & set(expected)
    assert set(delivered) | set(expected) == set(range(100))
    assert global_rows((shards, graph), 5, 2, global_batch=20, workers=1, settings=loose) == [rows(s) for s in epoch]

    lines = [json.loads(line) for line in (tmp_path / "new" / "bad.jsonl").read_text().splitlines()]
    assert {(line["row"], line["reason"]) for line in lines} == set(found.items())
    assert all(line["key"] == shards.key(line["row"]) for line in lines if expected[line["row"]] > 1)
    assert {line["replaced_by"] for line in lines} <= set(delivered)


def test_sound_samples_of_the_same_batch_stay_as_they_are(data, shards):
    graph = data[1]
    whole = steps((shards, graph), 1, global_batch=10, micro_batches=10, settings=SETTINGS)[0]
    broken = rows(whole)[4]
    overwrite(shards, broken, "tokens", 1, 999, "<u2")
    repaired = steps((shards, graph), 1, global_batch=10, micro_batches=10, settings=SETTINGS)[0]
    assert same(
        whole.micro_batches[:4] + whole.micro_batches[5:], repaired.micro_batches[:4] + repaired.micro_batches[5:]
    )
    assert [replacement.row for replacement in repaired.replaced] == [broken]
    assert rows(repaired)[4] == repaired.replaced[0].by != broken


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples_stop_the_run(data, shards, workers):
    for row in range(60):
        overwrite(shards, row, "tokens", 1, 999, "<u2")
    loader = Loader(shards, data[1], SETTINGS, global_batch=20, workers=workers)
    with closing(loader), pytest.raises(InputError, match=r"(5[1-9]|6\d) of \d+ samples were bad"):
        list(islice(loader, 10))


def test_nothing_usable_is_an_input_error_not_a_hang(data, shards):
    for row in range(100):
        overwrite(shards, row, "tokens", 1, 999, "<u2")
    with pytest.raises(InputError, match="hardly any sample"):
        steps((shards, data[1]), 1, global_batch=20, settings=SETTINGS)


def test_evaluation_replaces_from_its_own_split(data, shards):
    overwrite(shards, 103, "tokens", 1, 999, "<u2")
    delivered = [
        row
        for batch in evaluation_batches(shards, data[1], SETTINGS, batch_size=5)
        for row in batch.sample_rows.tolist()
    ]
    assert len(delivered) == 17
    assert 103 not in delivered
    assert min(delivered) >= 100


def test_a_tar_away_for_a_moment_is_waited_for(data, shards, monkeypatch, caplog):
    expected = [rows(step) for step in steps((shards, data[1]), 5, global_batch=20)]
    away = shards.path / shards.shards[0].name
    away.rename(away.with_suffix(".away"))

    def come_back(_):
        if away.with_suffix(".away").exists():
            away.with_suffix(".away").rename(away)

    monkeypatch.setattr(reader.time, "sleep", come_back)
    assert [rows(step) for step in steps((shards, data[1]), 5, global_batch=20)] == expected
    assert "trying again" in caplog.text


def test_a_tar_gone_for_good_stops_the_run(data, shards, monkeypatch):
    monkeypatch.setattr(reader.time, "sleep", lambda _: None)
    (shards.path / shards.shards[0].name).unlink()
    with pytest.raises(InputError, match=shards.shards[0].name):
        steps((shards, data[1]), 5, global_batch=20)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_tar_cut_short_while_it_is_read_is_told_by_name(data, shards, workers):
    with closing(Loader(shards, data[1], SETTINGS, global_batch=4, workers=workers)) as loader:
        next(loader)
        for shard in shards.shards:
            with open(shards.path / shard.name, "r+b") as stream:
                stream.truncate(512)
        with pytest.raises(InputError, match=r"train-\d+\.tar: (cannot be read: it was truncated|has 512 bytes)"):
            list(islice(loader, 200))
