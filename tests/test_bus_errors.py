"""Memory-mapped files that become shorter while they are read."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from bali_ds.bus_errors import bus_errors_raised
from bali_ds.errors import InputError
from bali_ds.npy import map_bytes

READS = """
import os, sys
from pathlib import Path
from bali_ds.bus_errors import handle_bus_errors
from bali_ds.npy import map_bytes
path = Path(sys.argv[1])
mapped = map_bytes(path, path.stat().st_size)
handle_bus_errors()
os.truncate(path, 10)
print(mapped.sum())
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "numbers of\x1b[2Ja file"
    path.write_bytes(bytes(range(1, 251)) * 400)
    return path


def test_the_block_ends_with_the_name_of_the_file_and_the_process_lives(path):
    mapped = map_bytes(path, 100_000)
    os.truncate(path, 5000)
    with pytest.raises(InputError, match=r"a file: cannot be read: it was truncated while in use"), bus_errors_raised():
        assert mapped[np.arange(90_000, 100_000)].sum() == 0
    with bus_errors_raised():
        assert mapped[:5000].sum() == 20 * sum(range(1, 251))


def test_an_error_in_the_block_is_a_consequence(path):
    mapped = map_bytes(path, 100_000)
    os.truncate(path, 0)
    with pytest.raises(InputError, match="it was truncated"), bus_errors_raised(), bus_errors_raised():
        assert 1 // int(mapped[0])


def test_blocks_of_several_threads_are_told_apart(path):
    mapped, outcomes = map_bytes(path, 100_000), {}

    def read(first, last):
        try:
            with bus_errors_raised():
                outcomes[first] = int(mapped[first:last].astype(np.int64).sum())
        except InputError:
            outcomes[first] = None

    os.truncate(path, 50_000)
    threads = [threading.Thread(target=read, args=(begin, begin + 10_000)) for begin in range(0, 100_000, 10_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = 40 * sum(range(1, 251))
    # the last page of the file is readable to its end
    assert [outcomes[begin] for begin in sorted(outcomes)] == [whole] * 5 + [None] * 5


def test_elsewhere_the_process_ends_with_one_line_and_status_two(path):
    done = subprocess.run([sys.executable, "-c", READS, path], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done
    assert done.stdout == ""
    name = str(path).replace("\x1b", "\\x1b")
    assert done.stderr == (
        f"bali-ds: {name}: cannot be read: it was truncated while in use, or its disk failed; copy it again\n"
    )
