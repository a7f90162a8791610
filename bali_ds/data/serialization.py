"""A step as bytes on a pipe: one JSON line that lists the arrays, then the arrays themselves."""

import json
import math
from collections.abc import Iterable, Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.data.batch_sampler import StepArrays
from bali_ds.data.collator import BLOCK_FIELDS, BatchArrays
from bali_ds.data.length_buckets import LengthBucket
from bali_ds.data.sample_validation import Replacement
from bali_ds.data.sampler import Position
from bali_ds.errors import InputError

Named = tuple[str, NDArray[np.int64]]


def send_step(stream: IO[bytes], step: StepArrays) -> None:
    """Write a step; all its arrays are int64."""
    micro_batches = [list(_arrays(micro_batch)) for micro_batch in step.micro_batches]
    shapes = [[(name, array.shape) for name, array in micro_batch] for micro_batch in micro_batches]
    position = list(vars(step.position_after).values())
    _send_line(stream, {"position": position, "micro_batches": shapes, "replaced": step.replaced})
    for micro_batch in micro_batches:
        for _, array in micro_batch:
            stream.write(array.tobytes())
    stream.flush()


class WorkerFailedError(RuntimeError):
    """A loader worker met an error that nobody foresaw; its traceback is in its output."""


def send_error(stream: IO[bytes], error: Exception) -> None:
    """Write what went wrong, for `receive_step` to raise on the other side."""
    foreseen = isinstance(error, InputError)
    _send_line(stream, {"error": str(error)} if foreseen else {"failure": f"{type(error).__name__}: {error}"})
    stream.flush()


def receive_step(stream: IO[bytes]) -> StepArrays | None:
    """Read one step; None where the stream ends before a step is complete.

    Args:
        stream: a buffered reader, whose `readinto` fills all it is given unless the stream ends.

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
    micro_batches, position = message["micro_batches"], Position(*message["position"])
    buffer = np.empty(sum(math.prod(shape) for micro_batch in micro_batches for _, shape in micro_batch), np.int64)
    if stream.readinto(buffer.view(np.uint8)) < buffer.nbytes:  # type: ignore[attr-defined]
        return None
    received = _split(buffer, [shape for micro_batch in micro_batches for _, shape in micro_batch])
    arrays = tuple(_chunk((name, next(received)) for name, _ in micro_batch) for micro_batch in micro_batches)
    return StepArrays(position, arrays, tuple(Replacement(*entry) for entry in message["replaced"]))


def _send_line(stream: IO[bytes], message: dict[str, Any]) -> None:
    stream.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")


def _arrays(micro_batch: BatchArrays) -> Iterator[Named]:
    for name, value in micro_batch.items():
        for array in (value,) if isinstance(value, np.ndarray) else (array for block in value for array in block):
            yield name, array


def _split(buffer: NDArray[np.int64], shapes: list[list[int]]) -> Iterator[NDArray[np.int64]]:
    begin = 0
    for shape in shapes:
        end = begin + math.prod(shape)
        yield buffer[begin:end].reshape(shape)
        begin = end


def _chunk(named: Iterable[Named]) -> BatchArrays:
    # without blocks, a field of blocks has no array to be named by
    fields: dict[str, list[NDArray[np.int64]]] = {name: [] for name in BLOCK_FIELDS}
    for name, array in named:
        fields.setdefault(name, []).append(array)
    return {
        name: tuple(map(LengthBucket, arrays[::2], arrays[1::2])) if name in BLOCK_FIELDS else arrays[0]
        for name, arrays in fields.items()
    }
