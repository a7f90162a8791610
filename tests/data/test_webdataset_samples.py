"""Samples for loops of one's own: read_shards and the webdataset pipeline against the arrays of the shard set."""

import subprocess

import numpy as np
import pytest
from torch.utils.data import DataLoader

import bali_ds
from bali_ds.data import webdataset_pipeline
from bali_ds.errors import InputError
from bali_ds.shards.shard_set import ShardSet


@pytest.fixture
def tar(sample):
    (file,) = sample.shards.glob("train-*.tar")
    return file


def test_samples_are_those_of_the_shards(sample, tar):
    shards = ShardSet.open(sample.shards)
    rows = shards.split("train")
    ours = list(bali_ds.read_shards(sample.shards))
    theirs = list(webdataset_pipeline(str(tar)))
    assert len(ours) == len(theirs) == len(rows)
    for row, own, decoded in zip(rows, ours, theirs, strict=True):
        assert own.key == decoded["__key__"] == shards.key(row)
        for name, expected in zip(("tokens", "mentions", "edges"), shards.arrays(row), strict=True):
            assert np.array_equal(getattr(own, name), expected)
            assert np.array_equal(decoded[name], expected)
        assert decoded["meta"]["start"] < decoded["meta"]["end"]


def test_a_command_and_loader_workers_give_every_sample_once(sample, tar):
    pipeline = webdataset_pipeline([f"pipe:cat {tar}"], shuffle=100)
    keys = [each["__key__"] for each in DataLoader(pipeline, batch_size=None, num_workers=1)]
    assert len(keys) == len(set(keys)) == len(ShardSet.open(sample.shards).split("train"))
    assert keys != sorted(keys)


def test_a_tar_of_something_else_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    subprocess.run(["tar", "cf", tmp_path / "other.tar", "-C", tmp_path, "a.txt"], check=True)
    with pytest.raises(InputError, match=r"sample a of .*other\.tar: lacks edges\.npy"):
        list(webdataset_pipeline(str(tmp_path / "other.tar")))
