"""The directory of a run."""

import os
import platform
import socket
from pathlib import Path

import torch

import bali_ds
from bali_ds.checkpoint.manager import RunProgress
from bali_ds.config import Recipe, dump_recipe, recorded_recipe
from bali_ds.config.reading import COMPLETE
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.directories import Output, published_directory
from bali_ds.doctor.machine import package_versions
from bali_ds.errors import InputError
from bali_ds.files import published_file
from bali_ds.inference.exported_directory import EXPORT, TOKENIZER_FILES
from bali_ds.library_internals import parameter_size
from bali_ds.model.aligner import Aligner
from bali_ds.model.pretrained import load_tokenizer
from bali_ds.model.text_encoder import read_configuration
from bali_ds.model.tokenizer_checks import check_same_tokens
from bali_ds.parsing import flattened
from bali_ds.planning.batch_plan import BatchPlan
from bali_ds.planning.run_data import RunData
from bali_ds.terminal import print_progress
from bali_ds.training.trackers import RUN_IDS

# Recipe keys that may change when a run is resumed: they do not change what was learned so far.
CHANGEABLE_KEYS = {
    "runs",
    "steps",
    "epochs",
    "deepspeed",
    "deterministic",
    "checkpoints",
    "validation",
    "evaluation",
    "fault_tolerance",
    "log_every",
    "trackers",
}
ENCODER = Output("the encoder of a run", "config.json", ("model_type",), TOKENIZER_FILES)
RUN = Output(
    "a run",
    "recipe.yaml",
    ("name", "runs", "text_encoder"),
    (
        "stop", "metrics.jsonl", "train.log", "left_out.jsonl", "quarantine-*.jsonl", "generated.json",
        "evaluation.json", "linking.json", "report.html", COMPLETE, RUN_IDS, "checkpoints/**",
        "tensorboard/**", "wandb/**", "stacks/*", "failures/*", "encoder/*",
        *(f"export/{name}" for name in (EXPORT.marker, *EXPORT.files)),
    ),
    read=lambda path: recorded_recipe(path.parent).model_dump(),
)  # fmt: skip


def prepare(recipe: Recipe) -> None:
    """Create the run's directory, or check that an existing one belongs to this recipe.

    Raises:
        InputError: the run was started with another recipe, or the encoder's tokenizer splits texts into other tokens
            once it is saved.
    """
    run = recipe.directory
    written = run / "recipe.yaml"
    if written.exists():
        _compare(recorded_recipe(run), recipe, written)
    # A run that is trained for more steps is not complete until they are exported too.
    (run / COMPLETE).unlink(missing_ok=True)
    encoder = run / "encoder"
    if not (written.exists() and encoder.exists()):
        with published_directory(encoder, ENCODER) as working:
            chosen = recipe.text_encoder
            configuration = read_configuration(chosen.path, layer=chosen.layer, bidirectional=chosen.bidirectional)
            configuration.save_pretrained(working)
            load_tokenizer(chosen.path).save_pretrained(working)
            check_same_tokens(Tokenizer.load(chosen.path), load_tokenizer(working), chosen.path)
    with published_file(written, "w") as stream:
        stream.write(dump_recipe(recipe))


def discard_run(directory: Path) -> None:
    """Replace an existing run by an empty directory; a kill leaves all of it or nothing.

    Raises:
        InputError: the directory is not a run, or holds files that are not part of one.
    """
    with published_directory(directory, RUN):
        pass


def _compare(before: Recipe, recipe: Recipe, written: Path) -> None:
    # with defaults of keys that are newer than the run
    given, wanted = (each.model_dump(mode="json") for each in (before, recipe))
    for values in (given, wanted):  # earlier versions recorded ./models/mine as models/mine
        values["text_encoder"]["path"] = os.path.normpath(values["text_encoder"]["path"])
    old, new = dict(flattened(given)), dict(flattened(wanted))
    differing = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    for key in differing:
        if key.partition(".")[0] not in CHANGEABLE_KEYS:
            raise InputError(
                f"{written}: the run was started with {key}: {old.get(key)}, now it is {new.get(key)}; "
                "give the run another name, or start it afresh with --resume never"
            )
    for key in differing:
        print_progress(f"{key}: {old.get(key)} before, {new.get(key)} now")


def announcement(recipe: Recipe, data: RunData, aligner: Aligner, batch_plan: BatchPlan, progress: RunProgress) -> str:
    """Return every derived number of a run, to be printed before its first step."""
    text = sum(parameter_size(parameter) for parameter in aligner.text.parameters())
    graph = sum(parameter_size(parameter) for parameter in aligner.graph.parameters())
    rows = {
        "run": str(recipe.directory),
        "graph": f"{data.graph.num_concepts:,} concepts, {data.graph.num_names:,} names, "
        f"{data.graph.num_edges:,} edges",
        "shards": f"{batch_plan.training_passages:,} training passages, fingerprint {data.shards.fingerprint[:12]}",
        "model": f"{text / 1e6:.1f} M parameters in the text encoder, {graph / 1e6:.1f} M in the graph encoder",
        "host": machine(aligner.device),
        "versions": versions(),
        "ranks": f"{batch_plan.ranks} on {aligner.device.type}, {recipe.precision}, {recipe.deepspeed}",
        "batch": f"{batch_plan.passages_per_step} passages = {batch_plan.ranks} ranks x {batch_plan.micro_batches} "
        f"micro-batches x {batch_plan.passages_per_micro_batch}",
        "length": f"{batch_plan.steps:,} steps of {batch_plan.steps_per_epoch:,} an epoch "
        f"= {batch_plan.epochs:.2f} epochs",
        "start": f"step {progress.step}" + (f", resumed at {progress.position}" if progress.step else ""),
    }
    return "\n".join(f"{name:>8}  {value}" for name, value in rows.items())


def machine(device: torch.device) -> str:
    """Return name, processor count and GPU of this host."""
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{socket.gethostname()}, {len(os.sched_getaffinity(0))} processors{gpu}"


def versions() -> str:
    """Return the versions of bali-ds and of the packages that a run depends on most."""
    own = f"bali-ds {bali_ds.__version__}, Python {platform.python_version()}"
    return ", ".join([own, *(f"{name} {version}" for name, version in package_versions().items())])
