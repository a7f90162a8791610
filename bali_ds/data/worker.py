"""Loader worker: a process that makes every n-th step of a rank and writes it to its standard output.

It is started as `python -m bali_ds.data.worker` with a JSON description on standard input and imports no torch, so
that it starts in a fraction of a second and stays small. It ends when its reader is gone, for whatever reason.

A step on the pipe is one JSON line, which gives positions, replacements and the shapes of all arrays, then the arrays.
"""

import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from typing import IO, Any

import numpy as np

from bali_ds.bus_errors import bus_errors_raised
from bali_ds.data.batch import ArrayTree, Batch, PackedSequences, PaddedSequences
from bali_ds.data.batch_part import BatchPart
from bali_ds.data.batch_sampler import BatchSampler, RankSlice, StepArrays
from bali_ds.data.mixture import Mixture, open_parts, parts_of
from bali_ds.data.sample_validation import Replacement
from bali_ds.data.sampler import Position
from bali_ds.data.sequences import Ints
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph


class WorkerFailedError(RuntimeError):
    """A loader worker met an unexpected error; its traceback is in its output."""


def description(
    shards: Mixture,
    graph: KnowledgeGraph,
    settings: StreamSettings,
    rank_slice: RankSlice,
    start: Position,
    worker: int,
    of: int,
) -> str:
    """Return the JSON line that tells a worker to make the steps `worker`, `worker + of`, ... of a rank."""
    return json.dumps(
        {
            "shards": parts_of(shards),
            "graph": str(graph.path),
            "settings": settings.describe(),
            "rank_slice": asdict(rank_slice),
            "start": asdict(start),
            "steps": [worker, of],
        }
    )


def main() -> None:
    """Serve one loader until it goes away."""
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not get between the steps
    try:
        work = json.loads(sys.stdin.readline())
        try:
            with bus_errors_raised():
                steps = _open(work)
            for step in steps.run(*work["steps"]):
                send_step(stream, step)
        except InputError as error:
            send_error(stream, error)
        except BrokenPipeError:
            raise
        except Exception as error:
            traceback.print_exc()
            send_error(stream, error)
    except BrokenPipeError:
        os._exit(0)


def _open(work: dict[str, Any]) -> BatchSampler:
    return BatchSampler(
        open_parts(work["shards"]),
        KnowledgeGraph.open(work["graph"]),
        StreamSettings.rebuild(work["settings"]),
        RankSlice(**work["rank_slice"]),
        Position(**work["start"]),
    )


def send_step(stream: IO[bytes], step: StepArrays) -> None:
    """Write a step; all its arrays are int64."""
    arrays: list[Ints] = []
    micro_batches = [_structure(micro_batch, arrays) for micro_batch in step.micro_batches]
    position = list(vars(step.position_after).values())
    size = sum(array.size for array in arrays)
    _send_line(stream, {"position": position, "micro_batches": micro_batches, "replaced": step.replaced, "size": size})
    for array in arrays:
        stream.write(array.tobytes())
    stream.flush()


def send_error(stream: IO[bytes], error: Exception) -> None:
    """Write an error, for `receive_step` to raise on the other side."""
    expected = isinstance(error, InputError)
    _send_line(stream, {"error": str(error)} if expected else {"failure": f"{type(error).__name__}: {error}"})
    stream.flush()


def receive_step(stream: IO[bytes], parts: Iterable[BatchPart] = ()) -> StepArrays | None:
    """Read one step; None where the stream ends before a step is complete.

    Args:
        stream: a buffered reader, whose `readinto` fills all it is given unless the stream ends.
        parts: those of the sender's settings.

    Raises:
        InputError: the sender met it.
        WorkerFailedError: the sender met any other error.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    message = json.loads(line)
    if "error" in message:
        raise InputError(message["error"])
    if "failure" in message:
        raise WorkerFailedError(f"a loader worker failed: {message['failure']} (traceback in the output of that rank)")
    buffer = np.empty(message["size"], np.int64)
    if stream.readinto(buffer.view(np.uint8)) < buffer.nbytes:  # type: ignore[attr-defined]
        return None
    classes = (Batch, PackedSequences, PaddedSequences, *(part.content for part in parts))
    kinds = {each.__name__: each for each in classes}
    begin = 0

    def take(shape: list[int]) -> Ints:
        nonlocal begin
        begin += math.prod(shape)
        return buffer[begin - math.prod(shape) : begin].reshape(shape)

    received = tuple(_rebuilt(micro_batch, kinds, take) for micro_batch in message["micro_batches"])
    return StepArrays(
        Position(*message["position"]), received, tuple(Replacement(*entry) for entry in message["replaced"])
    )


def _send_line(stream: IO[bytes], message: dict[str, Any]) -> None:
    stream.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")


def _structure(value: Any, arrays: list[Ints]) -> Any:
    """Append all arrays of a tree; return a JSON value with its structure, in which each shape stands for an array."""
    if isinstance(value, ArrayTree):
        inner = {field.name: _structure(getattr(value, field.name), arrays) for field in fields(value)}  # type: ignore[arg-type]
        return {"class": type(value).__name__, "fields": inner}
    if isinstance(value, tuple):
        return {"tuple": [_structure(item, arrays) for item in value]}
    if isinstance(value, dict):
        return {"dict": {key: _structure(item, arrays) for key, item in value.items()}}
    arrays.append(value)
    return value.shape


def _rebuilt(structure: Any, kinds: dict[str, Any], take: Callable[[list[int]], Ints]) -> Any:
    """Return the tree of a structure, its arrays taken in order."""
    if isinstance(structure, list):
        return take(structure)
    if "tuple" in structure:
        return tuple(_rebuilt(item, kinds, take) for item in structure["tuple"])
    items = structure["fields" if "class" in structure else "dict"].items()
    values = {name: _rebuilt(item, kinds, take) for name, item in items}
    return kinds[structure["class"]](**values) if "class" in structure else values


if __name__ == "__main__":
    main()
