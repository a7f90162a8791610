"""Export of a run: from a checkpoint to a Hugging Face directory, and to the Hugging Face Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bali_ds.checkpoint.lazy_tensor import LazyTensor
from bali_ds.checkpoint.marker import checkpoint_fault, named_checkpoints, read_marker
from bali_ds.checkpoint.zero_reader import read_checkpoint
from bali_ds.config import Recipe, recorded_recipe
from bali_ds.directories import published_directory
from bali_ds.errors import InputError, first_line
from bali_ds.evaluation.run_results import read_evaluation
from bali_ds.export.adapter import STEM, adapter_weights, lora_of, write_adapter_config
from bali_ds.export.architecture import ExportArchitecture
from bali_ds.export.model_card import model_card
from bali_ds.export.onnx import write_onnx
from bali_ds.export.public_recipe import public_recipe
from bali_ds.export.weights import SHARD_BYTES, average_with, merge_lora, verify_weights, write_weights
from bali_ds.files import published_file, read_json, write_json
from bali_ds.inference.exported_directory import DESCRIPTION, EXPORT, GRAPH_ENCODER_FILE, POOLING_FILE
from bali_ds.locations import is_on_hub
from bali_ds.model.text_encoder import load_text_encoder
from bali_ds.shards.shard_index import read_index

DTYPES = ("float16", "bfloat16", "float32")


def export_run(
    run: Path,
    out: Path,
    dtype: str = "float16",
    *,
    step: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    onnx: bool = False,
    start: tuple[str, float] | None = None,
    adapter: bool = False,
    overwrite: bool | None = None,
) -> dict[str, Any]:
    """Export the trained encoder of a run as a Hugging Face directory, and verify every tensor.

    The directory holds encoder, masked language modeling head and tokenizer, `graph_encoder.safetensors`, the weights
    of learned mention pooling, `bali_ds.json` (recipe, fingerprints, pooling) and a model card. The checkpoint is read
    in bounded memory.

    Args:
        run: the run directory.
        out: directory to write; an earlier export is replaced when the new one is complete.
        dtype: one of `DTYPES`.
        step: step of the checkpoint; None for the newest.
        shard_bytes: size above which weights are split into several files.
        onnx: whether to write an ONNX graph of the encoder as well.
        start: an encoder, by directory or hub name, to average the weights of the text encoder with: the one that
            training started from; and its share in the average, in 0..1. None exports the weights as trained.
        adapter: whether to write the LoRA weights as an adapter of peft, in place of an encoder with them merged.
        overwrite: whether to replace any other directory; None if the caller has no such option.

    Returns:
        {"step", "dtype", "tensors", "parameters", "bytes", "files", "out"}; `tensors` is the number verified.

    Raises:
        InputError: the run, its checkpoint or a tensor is missing or damaged.
    """
    run, out = Path(run), Path(out)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    stored_dtype: torch.dtype = getattr(torch, dtype)
    recipe = recorded_recipe(run)
    lora = lora_of(recipe.text_encoder) if adapter else None
    checkpoint = _find_checkpoint(run / "checkpoints", step)
    tensors = _tensors(checkpoint, recipe, start, merged=not adapter)
    architecture = ExportArchitecture.of(run / "encoder")
    encoder = adapter_weights(tensors) if adapter else architecture.rename(tensors)
    description = _description(recipe, checkpoint, tensors, dtype) | {
        "averaged_with": start and {"path": _public_name(start[0]), "share": start[1]},
        "adapter": adapter,
    }
    with published_directory(out, EXPORT, overwrite=overwrite) as working:
        parts = {STEM if adapter else "model": encoder, **_other_parts(tensors)}
        verified = _write_parts(working, parts, stored_dtype, shard_bytes)
        if lora:
            write_adapter_config(working, lora, _public_name(recipe.text_encoder.path), encoder)
            architecture.save_tokenizer(working)
        else:
            architecture.save(working, stored_dtype)
        description["files"] = sorted(path.name for path in working.iterdir())  # tokenizers differ in their files
        write_json(working / DESCRIPTION, description)
        architecture.save_sentence_modules(working, description["pooling"], recipe.text_encoder.query_prompt)
        if onnx:
            write_onnx(working)
        _write_card(run, working, description)
    published = sorted(path for path in out.rglob("*") if path.is_file())
    return {
        "step": description["step"],
        "dtype": dtype,
        "tensors": verified,
        "parameters": sum(tensor.size for tensor in encoder.values()),
        "bytes": sum(path.stat().st_size for path in published),
        "files": [path.relative_to(out).as_posix() for path in published],
        "out": str(out),
    }


def _tensors(
    checkpoint: Path, recipe: Recipe, start: tuple[str, float] | None, *, merged: bool
) -> dict[str, LazyTensor]:
    """Return the tensors of a checkpoint, with LoRA weights merged or not, averaged with those of `start` if given.

    Raises:
        InputError: the checkpoint is damaged, or has no graph encoder although the recipe has one.
    """
    tensors = merge_lora(read_checkpoint(checkpoint), recipe.text_encoder.lora if merged else None)
    if not _part("graph.", tensors) and recipe.graph_encoder.kind != "linearized":
        raise InputError(f"{checkpoint}: has no graph encoder; was it written by bali-ds train?")
    if start is None:
        return tensors
    (path, share), text = start, recipe.text_encoder
    encoder = load_text_encoder(path, seed=recipe.seed, layer=text.layer, bidirectional=text.bidirectional).encoder
    return average_with(tensors, encoder.state_dict(), share, "text.encoder.")


def _other_parts(tensors: Mapping[str, LazyTensor]) -> dict[str, dict[str, LazyTensor]]:
    """Return the tensors beside those of the encoder, by the stem of their file."""
    return {
        Path(GRAPH_ENCODER_FILE).stem: _part("graph.", tensors),
        Path(POOLING_FILE).stem: _part("pooling.", tensors),
    }


def _write_parts(
    directory: Path, parts: Mapping[str, Mapping[str, LazyTensor]], dtype: torch.dtype, shard_bytes: int
) -> int:
    """Write the parts that have tensors, compare each tensor with what was written, and return how many they are."""
    verified = 0
    for stem, part in parts.items():
        if part:
            written = write_weights(directory, stem, part, dtype, shard_bytes)
            verified += verify_weights(written, part, dtype)
    return verified


def _public_name(model: str) -> str:
    """Return what an export may say of another model: its name on the Hub, or that of its directory alone."""
    return model if is_on_hub(model) else Path(model).name


def push(directory: Path, repository: str) -> str:
    """Upload an exported directory to the Hugging Face Hub and return the URL of the repository.

    A new repository is private: weights learned from licensed vocabularies may be subject to their license, so the
    owner decides about publication.

    Raises:
        InputError: the Hub cannot be reached, or refuses the upload.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        url = hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(folder_path=directory, repo_id=repository, commit_message="Upload a model by bali-ds")
    except Exception as error:  # the client raises errors of several libraries
        remedy = f"{directory} is complete; log in with `hf auth login`, or check name and permissions"
        raise InputError(f"--push {repository}: {first_line(error)}; {remedy}") from error
    return str(url)


def _find_checkpoint(directory: Path, step: int | None) -> Path:
    """Return the checkpoint of a step, or the newest one, after comparing its files with their hashes."""
    checkpoints = named_checkpoints(directory)
    if not checkpoints:
        raise InputError(f"{directory}: has no checkpoints; train first")
    chosen = next((path for each, path in checkpoints if step in (None, each)), None)
    if chosen is None:
        names = ", ".join(path.name for _, path in checkpoints)
        raise InputError(f"{directory}: has no checkpoint of step {step}; choose one of {names}")
    if fault := checkpoint_fault(chosen, hashed=True):
        raise InputError(f"{chosen}: {fault}; choose another checkpoint with --step")
    return chosen


def _part(prefix: str, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the tensors below a prefix without it, shared tensors under their first name only."""
    first = {id(tensor): name for name, tensor in reversed(list(tensors.items()))}
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and first[id(tensor)] == name
    }


def _description(recipe: Recipe, checkpoint: Path, tensors: Mapping[str, LazyTensor], dtype: str) -> dict[str, Any]:
    marker = read_marker(checkpoint)
    relations, concepts = (
        _with_axes(checkpoint, tensors, f"graph.{name}.weight", 2) for name in ("relations", "concepts")
    )
    offset = _with_axes(checkpoint, tensors, "log_scale_offset", 1)
    fingerprints, passage_tokens = {"shards": marker.identity.get("data")}, None
    # all shard sets of a mixture have the same graph and tokenizer
    index = Path(recipe.data.locations[0]) / "index.json"
    if index.is_file():
        facts = read_index(index.parent)
        passage_tokens = facts["max_tokens"]
        fingerprints |= {"graph": facts["graph_fingerprint"], "tokenizer": facts["tokenizer"]["fingerprint"]}
    return {
        "format_version": 1,
        "pooling": "last" if recipe.text_encoder.pooling == "last" else "mean_tokens",
        "mention_pooling": recipe.text_encoder.pooling,
        "markers": recipe.text_encoder.markers,
        "passage_tokens": passage_tokens,
        "step": marker.progress.step,
        "dtype": dtype,
        "fingerprints": fingerprints,
        "num_relations": relations.shape[0] - 1 if relations else None,
        "num_concepts": concepts.shape[0] - 1 if concepts else None,
        "log_scale_offset": float(offset.tensor().detach()[0]) if offset else None,
        "recipe": public_recipe(recipe),
        "base_model": recipe.text_encoder.path if is_on_hub(recipe.text_encoder.path) else None,
        "data": _data_counts(recipe),
    }


def _with_axes(checkpoint: Path, tensors: Mapping[str, LazyTensor], name: str, axes: int) -> LazyTensor | None:
    """Return a tensor, which must have this number of axes and be nonempty; None if the checkpoint lacks it."""
    tensor = tensors.get(name)
    if tensor and (len(tensor.shape) != axes or not tensor.size):
        raise InputError(f"{checkpoint}: {name} is {list(tensor.shape)}, which no model of this program has")
    return tensor


def _data_counts(recipe: Recipe) -> dict[str, int]:
    """Return counts of the training data for the card, without those whose directories are not here."""
    counts: dict[str, int] = {}
    for location in recipe.data.locations:
        if (Path(location) / "index.json").is_file():
            for name in ("documents", "passages", "mentions"):
                counts[name] = counts.get(name, 0) + read_index(Path(location))["counts"].get(name, 0)
    return counts


def refresh_card(run: Path, out: Path) -> None:
    """Write the model card of an export again, with the results in the run's evaluation.json."""
    _write_card(Path(run), Path(out), read_json(Path(out) / DESCRIPTION))


def _write_card(run: Path, out: Path, description: dict[str, Any]) -> None:
    figures = read_evaluation(run)
    with published_file(out / "README.md", "w") as stream:
        stream.write(model_card(description, figures))
