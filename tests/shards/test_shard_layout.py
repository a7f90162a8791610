import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bali_ds.shards.layout import SAMPLE_DTYPE, npy_bytes, npy_header, shard_opening, tar_member
from bali_ds.shards.sample import sample_key


@given(name=st.from_regex(r"[A-Za-z0-9_.]{1,100}", fullmatch=True), data=st.binary(max_size=1500))
def test_members_equal_those_of_tarfile(name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    oracle = io.BytesIO()
    with tarfile.open(fileobj=oracle, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(data))
    assert oracle.getvalue().startswith(tar_member(name, data))


@pytest.mark.parametrize("shape", [(0,), (7,), (0, 3), (123456789, 3)])
@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<i8"])
def test_npy_headers_are_128_bytes_and_numpy_reads_them(dtype, shape):
    header = npy_header(dtype, shape)
    assert len(header) == 128
    stream = io.BytesIO(header)
    assert np.lib.format.read_magic(stream) == (1, 0)
    assert np.lib.format.read_array_header_1_0(stream) == (shape, False, np.dtype(dtype))
    if np.prod(shape) < 100:
        array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        loaded = np.load(io.BytesIO(npy_bytes(array)), allow_pickle=False)
        assert loaded.dtype == array.dtype
        assert (loaded == array).all()


def test_headers_of_structured_arrays_are_read_by_numpy():
    table = np.zeros(3, SAMPLE_DTYPE)
    table["tokens"] = [7, 8, 9]
    content = npy_bytes(table)
    assert (len(content) - table.nbytes) % 128 == 0
    loaded = np.load(io.BytesIO(content), allow_pickle=False)
    assert loaded.dtype == SAMPLE_DTYPE
    assert (loaded == table).all()


def test_the_opening_is_a_pax_header_readable_by_tarfile():
    for length in range(80, 120):  # around lengths at which the length of the record gains a digit
        description = {"x": "y" * length}
        stream = io.BytesIO(shard_opening(description) + tar_member("a", b"") + bytes(1024))
        with tarfile.open(fileobj=stream) as archive:
            assert archive.getnames() == ["a"]
        assert archive.pax_headers["comment"] == '{"x":"' + "y" * length + '"}'


def test_keys_are_safe_short_and_distinct():
    assert sample_key("12345", 7) == "12345_007"
    assert sample_key("10.1016/j.molcel", 0) == "10_1016_j_molcel-71a5d9a1e3e5_000"
    for odd in ("a b", "a\tb", "../x y", "é", "x" * 300, "", "a*b"):
        key = sample_key(odd, 12)
        assert key.isascii()
        assert "." not in key
        assert len(key) <= 87
    alike = ["a b", "a_b", "a.b", "a/b", "a_b_", "A_b"]
    alike += [sample_key(document, 0).removesuffix("_000") for document in alike]
    assert len({sample_key(document, 0) for document in alike}) == len(set(alike))
