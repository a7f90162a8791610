import json

import pytest

from bali_ds.cli import main
from bali_ds.data.loader import Loader
from bali_ds.data.mixture import Mixture
from bali_ds.data.sampler import Position
from bali_ds.data.settings import StreamSettings
from tests.data.conftest import write_shards


@pytest.mark.parametrize("rank", [0, 2])
def test_order_prints_what_the_loader_delivers(data, capsys, rank):
    shards, graph = data
    status = main(
        ["shards", "order", str(shards.path), "--global-batch", "12", "--world-size", "3", "--rank", str(rank),
         "--workers", "4", "--seed", "8", "--epoch", "1", "--start", "60", "--steps", "5"]
    )  # fmt: skip
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    loader = Loader(
        shards, graph, StreamSettings(seed=8), global_batch=12, rank=rank, world_size=3, start=Position(1, 60)
    )
    delivered = [[shards.key(row) for row in next(loader).micro_batches[0].sample_rows.tolist()] for _ in range(5)]
    assert status == 0
    assert printed == delivered


def test_order_goes_to_the_end_of_the_epoch(data, capsys):
    assert main(["shards", "order", str(data[0].path), "--global-batch", "9", "--start", "50"]) == 0
    printed = [key for line in capsys.readouterr().out.splitlines() for key in json.loads(line)]
    assert len(printed) == len(set(printed)) == 45


@pytest.mark.parametrize("arguments", [["--global-batch", "7", "--world-size", "2"], ["--global-batch", "1000"]])
def test_order_refuses_in_one_line(data, capsys, arguments):
    assert main(["shards", "order", str(data[0].path), *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_order_of_a_mixture_is_what_the_loader_delivers(data, tmp_path, capsys):
    shards, graph = data
    other = write_shards(tmp_path / "other", graph, train=40, seed=7)
    arguments = ["--global-batch", "12", "--seed", "8", "--start", "24", "--steps", "4"]
    assert main(["shards", "order", f"{shards.path}=2", f"{other.path}=3", *arguments]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    mixture = Mixture([shards, other], [2, 3])
    loader = Loader(mixture, graph, StreamSettings(seed=8), global_batch=12, start=Position(0, 24))
    assert printed == [
        [mixture.key(row) for row in next(loader).micro_batches[0].sample_rows.tolist()] for _ in range(4)
    ]
