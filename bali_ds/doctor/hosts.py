"""Checks of other hosts over ssh: Python, package versions, working directory, clock and shared memory."""

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel

from bali_ds.doctor.check_result import CheckResult, error, ok, warning
from bali_ds.doctor.hostfile import Host
from bali_ds.doctor.machine import PACKAGES, package_versions
from bali_ds.errors import InputError
from bali_ds.parsing import parse_json, validated

LARGEST_CLOCK_SKEW = 2.0
_PARALLEL = 64
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


class _Answer(BaseModel):
    python: str
    packages: dict[str, str]
    directory: bool
    time: float
    shared_memory: int


def check_hosts(hosts: Sequence[Host], *, ssh_port: int | None = None, timeout: float = 20) -> list[CheckResult]:
    """Check all hosts in parallel and return one result per host, in order.

    Args:
        hosts: hosts of the hostfile.
        ssh_port: port of their ssh servers; None for the default of the ssh client.
        timeout: seconds to wait for a host.
    """
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return list(pool.map(lambda host: _check_host(host, ssh_port, timeout), hosts))


def ssh_command(host: str, remote: str, *, port: int | None, timeout: float) -> list[str]:
    """Return the command that runs `remote` on a host; it fails instead of asking for a password."""
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, int(timeout // 2))}"]
    return ["ssh", *options, *(["-p", str(port)] if port else []), "--", host, remote]


def _check_host(host: Host, port: int | None, timeout: float) -> CheckResult:
    probe = f"PACKAGES = {PACKAGES!r}; DIRECTORY = {os.getcwd()!r}" + _PROBE
    remote = f"{shlex.quote(sys.executable)} -c {shlex.quote(probe)}"
    requested = time.time()
    try:
        done = subprocess.run(
            ssh_command(host.name, remote, port=port, timeout=timeout),
            capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        return error(host.name, "ssh is not installed on this host", "apt-get install openssh-client")
    except subprocess.TimeoutExpired:
        return error(
            host.name, f"no answer within {timeout:.0f} s", "check that the host is up and its address is correct"
        )
    if done.returncode:
        return _failure(host.name, done.returncode, done.stderr)
    try:
        answer = validated(_Answer, parse_json(done.stdout.strip().rpartition("\n")[2], host.name), host.name)
    except InputError:
        return error(host.name, f"answered {done.stdout[:60]!r}", "remove what its login scripts print")
    return _compare(host, answer, requested=requested, answered=time.time())


def _failure(name: str, status: int, output: str) -> CheckResult:
    last = output.strip().splitlines()[-1] if output.strip() else f"status {status}"
    if status == 255:
        return error(name, f"ssh: {last}", f"make `ssh {name} true` work without a password (ssh-copy-id {name})")
    return error(name, f"{sys.executable}: {last}", "install bali-ds at the same path on every host")


def _compare(host: Host, answer: _Answer, *, requested: float, answered: float) -> CheckResult:
    here = package_versions()
    if answer.python != platform.python_version():
        return error(host.name, f"Python {answer.python}, here {platform.python_version()}", "install the same version")
    if not answer.directory:
        return error(host.name, f"{os.getcwd()} does not exist", "make the working directory available on every host")
    for package, version in answer.packages.items():
        if version != here.get(package):
            return error(
                host.name, f"{package} {version or 'missing'}, here {here.get(package)}", "install the same versions"
            )
    # a correct clock shows a time between request and answer
    skew = max(requested - answer.time, answer.time - answered, 0.0)
    if skew > LARGEST_CLOCK_SKEW:
        return warning(host.name, f"clock differs by {skew:.0f} s", "run an NTP client (chrony) on every host")
    if answer.shared_memory < 2**30:
        return warning(
            host.name, f"/dev/shm has {answer.shared_memory / 2**30:.1f} GiB free", "mount a larger /dev/shm"
        )
    return ok(host.name, f"{host.slots} slots, Python {answer.python}, same packages, clock and directory")
