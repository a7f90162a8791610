"""Reader of the launcher's hostfiles: one host per line, as `NAME slots=N`."""

import re
from dataclasses import dataclass
from pathlib import Path

from bali_ds.errors import InputError
from bali_ds.files import read_text

_LINE = re.compile(r"(\S+)\s+slots=(\d+)")
_LARGEST_FILE = 1 << 24
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:\-]*[A-Za-z0-9])?")


@dataclass(frozen=True)
class Host:
    """One host of a hostfile and its number of ranks."""

    name: str
    slots: int


def read_hostfile(path: Path) -> list[Host]:
    """Return the hosts of a hostfile in order; `#` starts a comment.

    Raises:
        InputError: the file cannot be read or lists no hosts, or a line is not `NAME slots=N`, repeats a host, or holds
            a name that ssh would take for an option.
    """
    hosts: dict[str, Host] = {}
    for number, line in enumerate(read_text(path, _LARGEST_FILE).splitlines(), 1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if not match:
            raise InputError(f"{path}:{number}: {text!r} is not a host; write NAME slots=N")
        name, slots = match[1], int(match[2][:9])
        if not _NAME.fullmatch(name):
            raise InputError(f"{path}:{number}: {name!r} is not a host name or address")
        if slots < 1:
            raise InputError(f"{path}:{number}: {name} has 0 slots; write at least 1 or remove the line")
        if name in hosts:
            raise InputError(f"{path}:{number}: {name} is listed twice; add its slots up in one line")
        hosts[name] = Host(name, slots)
    if not hosts:
        raise InputError(f"{path}: lists no hosts; write lines such as: node1 slots=8")
    return list(hosts.values())
