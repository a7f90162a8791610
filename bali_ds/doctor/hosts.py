"""Checks of other hosts over ssh: the same Python, packages, directory and clock, and room to write."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bali_ds.doctor.check_result import Finding, error, ok, warning
from bali_ds.doctor.hostfile import Host
from bali_ds.doctor.machine import PACKAGES, package_versions

LARGEST_SKEW = 2.0
_AT_ONCE = 64
_PROBE = """
import importlib.metadata, json, os, platform, shutil, time
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
print(json.dumps({"python": platform.python_version(), "packages": {name: version(name) for name in PACKAGES},
    "directory": os.path.isdir(DIRECTORY), "time": time.time(), "shared_memory": shutil.disk_usage("/dev/shm").free}))
"""


def host_findings(hosts: Sequence[Host], *, ssh_port: int | None = None, timeout: float = 20) -> list[Finding]:
    """Return the findings about every host, in order; all are asked at once.

    Args:
        hosts: of the hostfile.
        ssh_port: port of their ssh servers; the client's default if None.
        timeout: seconds that one host may take.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda host: _ask(host, ssh_port, timeout), hosts))


def ssh_command(host: str, remote: str, *, port: int | None, timeout: float) -> list[str]:
    """Return the command that runs `remote` on a host without ever asking for a password."""
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, int(timeout // 2))}"]
    return ["ssh", *options, *(["-p", str(port)] if port else []), "--", host, remote]


def _ask(host: Host, port: int | None, timeout: float) -> Finding:
    probe = f"PACKAGES = {PACKAGES!r}; DIRECTORY = {os.getcwd()!r}" + _PROBE
    remote = f"{shlex.quote(sys.executable)} -c {shlex.quote(probe)}"
    asked = time.time()
    try:
        done = subprocess.run(
            ssh_command(host.name, remote, port=port, timeout=timeout),
            capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        return error(host.name, "ssh is missing here", "apt-get install openssh-client")
    except subprocess.TimeoutExpired:
        return error(host.name, f"no answer within {timeout:.0f} s", "check that it is up and its address is right")
    if done.returncode:
        return _failure(host.name, done.returncode, done.stderr)
    try:
        facts = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return error(host.name, f"answered {done.stdout[:60]!r}", "its login scripts must print nothing")
    return _judge(host, facts, asked=asked, answered=time.time())


def _failure(name: str, status: int, words: str) -> Finding:
    last = words.strip().splitlines()[-1] if words.strip() else f"status {status}"
    if status == 255:
        return error(name, f"ssh: {last}", f"make `ssh {name} true` work without a password (ssh-copy-id {name})")
    return error(name, f"{sys.executable}: {last}", "install bali-ds at the same path on every host")


def _judge(host: Host, facts: dict[str, Any], *, asked: float, answered: float) -> Finding:
    here = package_versions()
    if facts["python"] != platform.python_version():
        return error(
            host.name, f"Python {facts['python']}, here {platform.python_version()}", "install the same version"
        )
    if not facts["directory"]:
        return error(host.name, f"has no {os.getcwd()}", "the working directory must exist on every host: share it")
    for package, version in facts["packages"].items():
        if version != here[package]:
            return error(
                host.name, f"{package} {version or 'missing'}, here {here[package]}", "install the same versions"
            )
    # a right clock lies between asking and answering
    skew = max(asked - facts["time"], facts["time"] - answered, 0.0)
    if skew > LARGEST_SKEW:
        return warning(host.name, f"its clock is {skew:.0f} s off", "run an NTP client (chrony) on every host")
    if facts["shared_memory"] < 2**30:
        return warning(host.name, f"/dev/shm has {facts['shared_memory'] / 2**30:.1f} GiB free", "make it larger")
    return ok(host.name, f"{host.slots} slots, Python {facts['python']}, same packages, clock and directory")
