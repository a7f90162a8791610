"""Command `train`: starts the ranks of a run on this machine or on the hosts of a hostfile."""

import argparse
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from types import FrameType

from bali_ds.cli.common import add_recipe, add_resume, choose_device, positive, recipe_of
from bali_ds.errors import STOPPED, InputError
from bali_ds.shipped_files import RECIPES, SAMPLE, find_recipe
from bali_ds.terminal import print_progress, verbosity

_RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK")


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    train = commands.add_parser(
        "train",
        help="train, export and evaluate the model of a recipe",
        description="Train the model of a recipe on all GPUs of this machine, or on its CPU; then export and evaluate. "
        "The same command resumes an interrupted run. Exit status: 0 complete, 2 mistake in the input, 3 diverged, "
        "4 last checkpoint not saved, 75 interrupted, 1 any other error.",
        epilog="examples:\n"
        "  bali-ds train sample\n"
        "  bali-ds train recipe.yaml batch.passages=512 --ranks 4\n"
        "  bali-ds train recipe.yaml --hostfile hosts --master-addr 10.0.0.1\n"
        "Started by torchrun, Open MPI's mpirun or launch/slurm.sbatch, the command is one of their ranks.",
    )
    add_recipe(train)
    add_resume(train)
    where = train.add_mutually_exclusive_group()
    where.add_argument(
        "--ranks", type=positive, metavar="N",
        help="processes on this machine (default: one for each GPU, one without a GPU)",
    )  # fmt: skip
    where.add_argument("--hostfile", type=Path, metavar="FILE", help="start on these hosts, listed as: NAME slots=N")
    train.add_argument(
        "--master-addr", metavar="ADDRESS", help="with --hostfile: an address of the first host that the others reach"
    )
    train.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="device of the ranks (default: %(default)s)"
    )
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from bali_ds.config import load_recipe
    from bali_ds.config.reading import COMPLETE
    from bali_ds.doctor.deepspeed_config import load_deepspeed_config

    path, overrides = recipe_of(options)
    recipe = load_recipe(path, overrides)
    load_deepspeed_config(recipe.deepspeed)  # a mistake in it is found before anything is built or started
    arguments = ["--config", path, "--resume", options.resume, *overrides]
    arguments += _verbosity_option()
    if any(name in os.environ for name in _RANK_VARIABLES):
        return _only_rank(arguments)
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise InputError("several tasks of srun would start a job each; submit launch/slurm.sbatch instead")
    if find_recipe(path).resolve() == (RECIPES / "sample.yaml").resolve():
        _build_sample(recipe.data.graph, recipe.data.shards)
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    where = _on_hosts(options) if options.hostfile else _on_this_machine(options)
    if where is None:
        return _only_rank(arguments)
    status = _launch([*where, "--module", "bali_ds.cli.train", *arguments])
    if status or recipe.evaluation.when != "after":
        return status
    # the launcher can end with 0 when a rank was killed
    return 0 if (recipe.directory / COMPLETE).exists() else STOPPED


def _only_rank(arguments: list[str]) -> int:
    from bali_ds.cli.train import run_process

    run_process(arguments)


def _build_sample(graph: Path, shards: object) -> None:
    """Build graph and shards of the sample where they are missing, with the commands that a user would type."""
    from bali_ds.cli import main

    tokenizer, corpus = SAMPLE / "encoder", f"pubtator:{SAMPLE / 'corpus.pubtator'}"
    commands = {
        str(graph): ["graph", "build", "--rrf", str(SAMPLE), "--out", str(graph)],
        str(shards): ["shards", "build", "--graph", str(graph), "--corpus", corpus, "--tokenizer", str(tokenizer),
                      "--validation", "0.05", "--out", str(shards)],
    }  # fmt: skip
    for out, command in commands.items():
        if not Path(out).exists():
            print_progress(" ".join(["bali-ds", *command]))
            if main([*command, *_verbosity_option()]):
                raise InputError(f"{out}: the sample could not be built")


def _verbosity_option() -> list[str]:
    return [] if verbosity() == "normal" else [f"--{verbosity()}"]


def _on_this_machine(options: argparse.Namespace) -> list[str] | None:
    """Return the launcher's arguments for ranks on this machine; None for one rank, which needs no launcher."""
    gpus = choose_device(options.device)
    ranks = options.ranks or gpus or 1
    if options.device == "cuda" and not gpus:
        raise InputError("--device cuda: torch finds no GPU on this machine; run bali-ds doctor, or pass --device cpu")
    if gpus and ranks > gpus:
        raise InputError(f"--ranks {ranks}: this machine has {gpus} GPUs; pass at most {gpus}, or --device cpu")
    if ranks == 1:
        return None
    if not gpus:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
    if gpus and (visible := os.environ.get("CUDA_VISIBLE_DEVICES")):
        # with --num_gpus the launcher would ignore the variable and take the first GPUs of the machine
        devices = [device.strip() for device in visible.split(",")][:ranks]
        if not all(device.isdecimal() for device in devices):
            raise InputError(f"CUDA_VISIBLE_DEVICES={visible}: DeepSpeed's launcher needs numbers of GPUs, not UUIDs")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        return []
    return ["--num_gpus", str(ranks)]


def _on_hosts(options: argparse.Namespace) -> list[str]:
    from bali_ds.doctor.hostfile import read_hostfile

    if options.device != "auto":
        raise InputError("--device: hosts choose their device themselves; write DS_ACCELERATOR=cpu to .deepspeed_env")
    hosts = read_hostfile(options.hostfile)
    if len(hosts) > 1 and not options.master_addr:
        raise InputError(
            f"{options.hostfile}: pass --master-addr with an address of {hosts[0].name} that the other hosts reach"
        )
    address = ["--master_addr", options.master_addr] if options.master_addr else []
    return ["--hostfile", str(options.hostfile), *address]


def _launch(arguments: list[str]) -> int:
    """Run DeepSpeed's launcher with its arguments and return its exit status.

    Its child, which starts the ranks, is in the process group of the terminal and answers Ctrl-C itself; SIGTERM is
    passed on to it. For several hosts the launcher has handlers of its own, which end it with status 1; so the signals
    that arrive are read from where Python writes their numbers, whoever handles them.
    """
    import psutil
    from deepspeed.launcher import runner

    arrived, numbers = socket.socketpair()
    for each in (arrived, numbers):
        each.setblocking(False)
    signal.set_wakeup_fd(numbers.fileno(), warn_on_full_buffer=False)

    def stop(number: int, _: FrameType | None) -> None:
        if number == signal.SIGTERM:
            for child in psutil.Process().children():
                child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        runner.main(["--master_port", os.environ["MASTER_PORT"], "--log_level", "error", *arguments])
    except SystemExit as exiting:
        status = int(exiting.code or 0)
        # the launcher ends with 1 after a signal, whatever the status of the ranks, which saved a checkpoint
        return STOPPED if status == 1 and _was_stopped(arrived) else status
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the launcher of DeepSpeed cannot start the ranks: {error}") from error
    finally:
        signal.set_wakeup_fd(-1)
        arrived.close()
        numbers.close()
    return 0


def _was_stopped(arrived: socket.socket) -> bool:
    """Return whether one of the signals that arrived asks to stop."""
    with suppress(BlockingIOError):
        return not {signal.SIGINT, signal.SIGTERM}.isdisjoint(arrived.recv(4096))
    return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
