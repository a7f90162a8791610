"""The command that answers: which samples did this rank see?"""

import argparse
import json

from bali_ds.errors import InputError


def add_order(shards: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `shards order` to the group of shards."""
    command = shards.add_parser("order", help="print the sample keys of each step, one JSON list a line")
    command.add_argument(
        "shards", nargs="+", metavar="SHARDS", help="directory; of a mixture several, each as SHARDS=PROPORTION"
    )
    command.add_argument(
        "--global-batch", type=int, required=True, metavar="G", help="samples of a step over all ranks"
    )
    command.add_argument("--world-size", type=int, default=1, metavar="W", help="ranks of the run")
    command.add_argument("--rank", type=int, default=0, metavar="R", help="whose samples to print")
    command.add_argument(
        "--workers", type=int, default=0, metavar="K", help="of the run; the order does not depend on it"
    )
    command.add_argument("--seed", type=int, default=0, metavar="S", help="the run's seed")
    command.add_argument("--epoch", type=int, default=0, metavar="E", help="epoch to start in")
    command.add_argument("--start", type=int, default=0, metavar="N", help="samples of that epoch already seen")
    command.add_argument("--steps", type=int, metavar="N", help="steps to print; to the end of the epoch by default")
    command.add_argument("--window", type=int, default=1024, help="samples shuffled among each other in a lane")
    command.add_argument("--temperature", type=float, default=1.0, metavar="T", help="the run's data.temperature")
    command.set_defaults(run=_order)


def _order(options: argparse.Namespace) -> None:
    from bali_ds.data.mixture import Mixture
    from bali_ds.data.sampler import Position, SampleOrder, Schedule, rank_offsets
    from bali_ds.data.settings import StreamSettings
    from bali_ds.shards.shard_set import ShardSet

    if options.steps is not None and options.steps < 0:
        raise InputError(f"--steps {options.steps}: take a whole number from 0 on")
    parts = [_proportion(text) for text in options.shards]
    mixture = Mixture([ShardSet.open(path) for path, _ in parts], [proportion for _, proportion in parts])
    settings = StreamSettings(seed=options.seed, window=options.window, temperature=options.temperature)
    order = SampleOrder(mixture, settings)
    offsets = rank_offsets(options.global_batch, 1, options.rank, options.world_size)
    schedule = Schedule(order.size, options.global_batch, Position(options.epoch, options.start))
    steps = (order.size - options.start) // options.global_batch if options.steps is None else options.steps
    for step in range(steps):
        begin = schedule.begin(step)
        rows = order.indices(begin.epoch * order.size + begin.samples_seen + offsets).sample_rows
        print(json.dumps([mixture.key(row) for row in rows.tolist()]))


def _proportion(text: str) -> tuple[str, int]:
    path, equals, proportion = text.rpartition("=")
    return (path, int(proportion)) if equals and proportion.isdigit() else (text, 1)
