"""From the newest checkpoint of a run to a Hugging Face directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bali_ds.checkpoint.lazy_tensor import LazyTensor
from bali_ds.checkpoint.marker import checkpoint_fault, named_checkpoints, read_marker
from bali_ds.checkpoint.zero_reader import read_checkpoint
from bali_ds.config import Recipe, recorded_recipe
from bali_ds.directories import published_directory
from bali_ds.errors import InputError
from bali_ds.export.model_card import model_card
from bali_ds.export.onnx import write_onnx
from bali_ds.export.sentence_modules import write_sentence_modules
from bali_ds.export.weights import SHARD_BYTES, merge_lora, verify_weights, write_weights
from bali_ds.files import published_file, read_json, write_json
from bali_ds.inference.encoder import DESCRIPTION, EXPORT
from bali_ds.inference.module_weights import POOLING_FILE
from bali_ds.model.pretrained import fresh_model, load_configuration, load_tokenizer

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
GRAPH_ENCODER = "graph_encoder"
MENTION_POOLING = Path(POOLING_FILE).stem


def export_run(
    run: Path,
    out: Path,
    dtype: str = "float16",
    *,
    step: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    onnx: bool = False,
    overwrite: bool | None = None,
) -> dict[str, Any]:
    """Write the trained encoder of a run as an ordinary Hugging Face directory, and verify every tensor of it.

    Beside encoder, masked-language-model head and tokenizer: `graph_encoder.safetensors`, the weights of attention
    pooling where it was learned, `bali_ds.json` (recipe, fingerprints, pooling) and a model card. The checkpoint is
    read offline, in bounded memory.

    Args:
        run: the run's directory.
        out: the directory to write; an export that is there is replaced when the new one is complete.
        dtype: "float16", "bfloat16" or "float32".
        step: of the checkpoint; None takes the newest.
        shard_bytes: weights above this size are written in several files.
        onnx: also write the encoder as an ONNX graph.
        overwrite: replace any other directory as well; None where the caller has no such option.

    Returns:
        {"step", "dtype", "tensors", "parameters", "bytes", "files", "out"}; `tensors` counts those compared.

    Raises:
        InputError: the run, its checkpoint or a tensor is not as it should be.
    """
    run, out = Path(run), Path(out)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    recipe = recorded_recipe(run)
    checkpoint = _chosen_checkpoint(run / "checkpoints", step)
    tensors = merge_lora(read_checkpoint(checkpoint), recipe.text_encoder.lora)
    architecture = _Architecture.of(run / "encoder")
    encoder = architecture.named(tensors)
    graph, pooling = _below("graph.", tensors), _below("pooling.", tensors)
    if not graph and recipe.graph_encoder.kind != "linearized":
        raise InputError(f"{checkpoint}: holds no graph encoder; was it written by launch/train.py?")
    description = _description(recipe, checkpoint, tensors, dtype)
    with published_directory(out, EXPORT, overwrite=overwrite) as working:
        files = write_weights(working, "model", encoder, DTYPES[dtype], shard_bytes)
        compared = verify_weights(files, encoder, DTYPES[dtype])
        if graph:
            own = write_weights(working, GRAPH_ENCODER, graph, DTYPES[dtype], shard_bytes)
            compared += verify_weights(own, graph, DTYPES[dtype])
        if pooling:
            own = write_weights(working, MENTION_POOLING, pooling, DTYPES[dtype], shard_bytes)
            compared += verify_weights(own, pooling, DTYPES[dtype])
        architecture.save(working, DTYPES[dtype])
        description["files"] = sorted(path.name for path in working.iterdir())  # which ones is up to the tokenizer
        write_json(working / DESCRIPTION, description)
        write_sentence_modules(working, architecture.width)
        if onnx:
            write_onnx(working)
        _write_card(run, working, description)
    written = sorted(path for path in out.rglob("*") if path.is_file())
    return {
        "step": description["step"],
        "dtype": dtype,
        "tensors": compared,
        "parameters": sum(tensor.size for tensor in encoder.values()),
        "bytes": sum(path.stat().st_size for path in written),
        "files": [path.relative_to(out).as_posix() for path in written],
        "out": str(out),
    }


def _chosen_checkpoint(directory: Path, step: int | None) -> Path:
    found = named_checkpoints(directory)
    if not found:
        raise InputError(f"{directory}: holds no checkpoint; train first")
    chosen = next((path for taken, path in found if step in (None, taken)), None)
    if chosen is None:
        raise InputError(
            f"{directory}: holds no checkpoint of step {step}; there are {', '.join(path.name for _, path in found)}"
        )
    if fault := checkpoint_fault(chosen, hashed=True):
        raise InputError(f"{chosen}: {fault}; choose another checkpoint with --step")
    return chosen


@dataclass(frozen=True)
class _Architecture:
    """What transformers says of the encoder with its head, without any weight in memory."""

    source: Path
    model: Any

    @classmethod
    def of(cls, source: Path) -> "_Architecture":
        from transformers import AutoModelForMaskedLM

        config = load_configuration(source)
        with torch.device("meta"):
            return cls(source, fresh_model(AutoModelForMaskedLM, config, source))

    def named(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Return the tensors of the text encoder and its head under the names that transformers reads.

        The head is the architecture's own: what follows the base model, one module or several in a row.
        """
        base = self.model.base_model_prefix
        heads = [name for name, _ in self.model.named_children() if name != base]
        prefixes = {"text.encoder.": f"{base}."}
        if len(heads) == 1:
            prefixes["text.head."] = f"{heads[0]}."
        else:
            prefixes.update({f"text.head.{number}.": f"{name}." for number, name in enumerate(heads)})
        found = {}
        for name, tensor in tensors.items():
            for prefix, published in prefixes.items():
                if name.startswith(prefix):
                    found[published + name.removeprefix(prefix)] = tensor
        for alias, original in (self.model._tied_weights_keys or {}).items():
            if original in found:
                found.pop(alias, None)
        self._check(found)
        return found

    def _check(self, found: Mapping[str, LazyTensor]) -> None:
        tied = set(self.model._tied_weights_keys or {})
        expected = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items() if name not in tied}
        for name, shape in expected.items():
            if name not in found:
                raise InputError(f"{self.source}: the checkpoint lacks {name} of its architecture")
            if found[name].shape != shape:
                raise InputError(f"{self.source}: {name} is {list(found[name].shape)}, config.json says {list(shape)}")
        if surplus := sorted(set(found) - set(expected)):
            raise InputError(f"{self.source}: the checkpoint's {surplus[0]} is no weight of its architecture")

    @property
    def width(self) -> int:
        """The hidden size."""
        return int(self.model.config.hidden_size)

    def save(self, out: Path, dtype: torch.dtype) -> None:
        """Write config.json and the tokenizer's files."""
        self.model.config.architectures = [type(self.model).__name__]
        self.model.config.dtype = dtype
        self.model.config.save_pretrained(out)
        load_tokenizer(self.source).save_pretrained(out)


def _below(prefix: str, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors of one part, each once under its first name."""
    first = {id(tensor): name for name, tensor in reversed(list(tensors.items()))}
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and first[id(tensor)] == name
    }


def _description(recipe: Recipe, checkpoint: Path, tensors: Mapping[str, LazyTensor], dtype: str) -> dict[str, Any]:
    marker = read_marker(checkpoint)
    relations, concepts = (tensors.get(f"graph.{name}.weight") for name in ("relations", "concepts"))
    offset = tensors.get("log_scale_offset")
    fingerprints = {"shards": marker.identity.get("data")}
    shards = recipe.data.shards
    # What is mixed was built from the same graph and with the same tokenizer.
    index = Path(shards if isinstance(shards, str) else next(iter(shards))) / "index.json"
    if index.is_file():
        facts = read_json(index)
        fingerprints |= {"graph": facts.get("graph_fingerprint"), "tokenizer": facts["tokenizer"]["fingerprint"]}
    return {
        "format_version": 1,
        "pooling": "mean_tokens",
        "mention_pooling": recipe.text_encoder.pooling,
        "markers": recipe.text_encoder.markers,
        "step": marker.progress.step,
        "dtype": dtype,
        "fingerprints": fingerprints,
        "num_relations": relations.shape[0] - 1 if relations else None,
        "num_concepts": concepts.shape[0] - 1 if concepts else None,
        "log_scale_offset": float(offset.tensor().detach()[0]) if offset else None,
        "recipe": recipe.model_dump(mode="json"),
    }


def refresh_card(run: Path, out: Path) -> None:
    """Write the model card of an export again, with the figures that the run's evaluation.json has by now."""
    _write_card(Path(run), Path(out), read_json(Path(out) / DESCRIPTION))


def _write_card(run: Path, out: Path, description: dict[str, Any]) -> None:
    path = run / "evaluation.json"
    figures = read_json(path) if path.is_file() else {}
    with published_file(out / "README.md", "w") as stream:
        stream.write(model_card(description, figures))
