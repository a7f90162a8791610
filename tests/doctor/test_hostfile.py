import contextlib
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.doctor.hostfile import Host, read_hostfile
from bali_ds.errors import InputError

names = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=12)


def test_hosts_are_read_in_order_without_comments(tmp_path):
    file = tmp_path / "hostfile"
    file.write_text("# the rack\nnode-02 slots=8\n\n10.0.0.1\tslots=4  # spare\nfe80::1 slots=1")
    assert read_hostfile(file) == [Host("node-02", 8), Host("10.0.0.1", 4), Host("fe80::1", 1)]


@settings(deadline=None)
@given(st.dictionaries(names, st.integers(1, 64), min_size=1, max_size=2000))
def test_thousands_of_hosts_come_back_as_written(tmp_path_factory, hosts):
    file = tmp_path_factory.mktemp("hosts") / "hostfile"
    file.write_text("".join(f"{name} slots={slots}\n" for name, slots in hosts.items()))
    assert {host.name: host.slots for host in read_hostfile(file)} == hosts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a slots=1\nb\n", ":2: 'b' is not a host; write NAME slots=N"),
        ("a slots=one", ":1: .* is not a host"),
        ("a slots=-1", ":1: .* is not a host"),
        ("a slots=1 b", ":1: .* is not a host"),
        ("a slots=0", ":1: a has 0 slots"),
        ("a slots=1\n\na slots=2", ":3: a is listed twice"),
        ("-oProxyCommand=x slots=1", ":1: .* is not a host name"),
        ("$(reboot) slots=1", ":1: .* is not a host name"),
        ("# nothing\n", "lists no hosts"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path, text, message):
    file = tmp_path / "hostfile"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_hostfile(file)


@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_hosts_or_one_line(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("hosts") / "hostfile"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(InputError):
        assert all(host.slots >= 1 for host in read_hostfile(file))
