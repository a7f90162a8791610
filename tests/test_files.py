import gzip

import pytest

from bali_ds import files
from bali_ds.errors import InputError
from tests.damage import largest_file


@pytest.mark.parametrize("compressed", [False, True])
def test_lines_are_numbered_without_the_byte_order_mark(tmp_path, compressed):
    content = "\ufeffone\r\n\n\r\n  \nfive\tβ".encode()
    (tmp_path / "file").write_bytes(gzip.compress(content) if compressed else content)
    lines = [(1, "one"), (2, ""), (3, ""), (4, "  "), (5, "five\tβ")]
    assert list(files.numbered_lines(tmp_path / "file")) == lines
    assert list(files.nonempty_lines(tmp_path / "file")) == [lines[0], lines[4]]


def test_lines_that_are_too_long_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_LINE", 8)
    (tmp_path / "file").write_text("short\n" + "x" * 20)
    with pytest.raises(InputError, match=r"file:2: has more than 8 characters; check the file format"):
        list(files.numbered_lines(tmp_path / "file"))
    with pytest.raises(InputError, match=r"missing: cannot be read"):
        list(files.numbered_lines(tmp_path / "missing"))


def test_a_record_on_a_full_disk_is_a_warning(tmp_path, caplog):
    path = tmp_path / "folder/record.jsonl"
    files.append_lines(path, ["one"])
    with largest_file(6):
        files.append_lines(path, ["two", "three"])
    assert caplog.messages == [f"{path}: cannot be written, the run continues without it: File too large"]
    files.append_lines(path, [])
    assert path.read_text().startswith("one\n")
