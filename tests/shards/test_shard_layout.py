import io
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bali_ds.shards.layout import npy_bytes, shard_opening, tar_member
from bali_ds.shards.sample import sample_key


@given(name=st.from_regex(r"[A-Za-z0-9_.]{1,100}", fullmatch=True), data=st.binary(max_size=1500))
def test_members_are_what_tarfile_writes(name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    oracle = io.BytesIO()
    with tarfile.open(fileobj=oracle, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(data))
    assert oracle.getvalue().startswith(tar_member(name, data))


@pytest.mark.parametrize("shape", [(0,), (7,), (0, 3), (123456789, 3)])
@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<i8"])
def test_npy_headers_are_128_bytes_and_numpy_reads_them(dtype, shape):
    if np.prod(shape) < 100:
        array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        stream = io.BytesIO(npy_bytes(array))
        loaded = np.load(stream, allow_pickle=False)
        assert loaded.dtype == array.dtype
        assert loaded.shape == shape
        assert (loaded == array).all()
    assert len(npy_bytes(np.empty((0, 3), dtype))) == 128


def test_the_opening_is_a_pax_header_that_tarfile_reads():
    for length in range(80, 120):  # lengths around which the record's own length gains a digit
        description = {"x": "y" * length}
        stream = io.BytesIO(shard_opening(description) + tar_member("a", b"") + bytes(1024))
        with tarfile.open(fileobj=stream) as archive:
            assert archive.getnames() == ["a"]
        assert archive.pax_headers["comment"] == '{"x":"' + "y" * length + '"}'


def test_keys_are_safe_and_short():
    assert sample_key("12345", 7) == "12345_007"
    assert sample_key("10.1016/j.molcel", 0) == "10_1016_j_molcel_000"
    for odd in ("a b", "a\tb", "../x y", "é", "x" * 300, "", "a*b"):
        key = sample_key(odd, 12)
        assert key.isascii()
        assert "." not in key
        assert len(key) <= 87
    assert sample_key("a b", 0) != sample_key("a_b", 0)
