"""Loads a decoder as one of several ranks and prints by how much its memory grew at most, in bytes.

python tests/training/partition_ranks.py RECIPE
"""

import ctypes
import re
import sys
import threading
import time
from pathlib import Path

from bali_ds.config import Recipe
from bali_ds.library_internals import parameter_size
from bali_ds.model.build_model import build_aligner
from bali_ds.training.partition import ZeroPartition, partition_of
from bali_ds.training.process_group import joined_ranks
from tests.leaving import leave


def anonymous() -> int:
    """The private memory of this process."""
    (found,) = re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(found)


def return_freed_memory() -> None:
    """Let the allocator return what was freed and will be, so that resident memory is memory in use."""
    trim_threshold, mmap_threshold = -1, -3
    for parameter in (trim_threshold, mmap_threshold):
        assert ctypes.CDLL(None).mallopt(parameter, 65536)
    ctypes.CDLL(None).malloc_trim(0)  # weights would fill the holes


def main() -> None:
    recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
    settings = {"train_batch_size": 4, "zero_optimization": {"stage": 3}}
    with joined_ranks() as ranks:
        partition = partition_of(recipe, settings)
        assert isinstance(partition, ZeroPartition)
        ranks.barrier()
        return_freed_memory()
        before, ended = anonymous(), threading.Event()
        peaks = [before]

        def watch() -> None:
            while not ended.is_set():
                peaks.append(anonymous())
                time.sleep(0.002)

        thread = threading.Thread(target=watch)
        thread.start()
        aligner = build_aligner(recipe, 10, partition=partition)
        ended.set()
        thread.join()
        size = sum(4 * parameter_size(parameter) for parameter in aligner.text.parameters())
        print(f"GREW {max(peaks) - before} OF {size}", flush=True)
        ranks.barrier()
    leave()


main()
