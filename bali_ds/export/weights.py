"""Writing and verification of safetensors files in bounded memory, and merging of LoRA weights."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from bali_ds.checkpoint.lazy_tensor import LazyTensor
from bali_ds.config import LoraConfig
from bali_ds.errors import InputError

SHARD_BYTES = 5 * 10**9
CODES = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


def write_weights(
    directory: Path, stem: str, tensors: Mapping[str, LazyTensor], dtype: torch.dtype, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write `STEM.safetensors`, or above `shard_bytes` several files and an index in the format of transformers.

    Floating-point tensors are cast to `dtype`, others keep their dtype.

    Raises:
        InputError: a value is non-finite, or too large for `dtype`.
    """
    shards = list(_shards(tensors, dtype, shard_bytes))
    if len(shards) == 1:
        return [_write_file(directory / f"{stem}.safetensors", tensors, dtype)]
    files = []
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = directory / f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        files.append(_write_file(file, {name: tensors[name] for name in names}, dtype))
        weight_map.update(dict.fromkeys(names, file.name))
    total = sum(_bytes(tensor, dtype) for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return files


def verify_weights(files: list[Path], tensors: Mapping[str, LazyTensor], dtype: torch.dtype) -> int:
    """Read the files back and compare every tensor bit for bit with the cast checkpoint tensor.

    Returns:
        the number of tensors compared.

    Raises:
        InputError: a tensor is missing, unexpected or different.
    """
    from safetensors import safe_open

    compared = 0
    for file in files:
        with safe_open(file, framework="pt") as written:
            for name in written.keys():  # noqa: SIM118 (the handle is not a mapping)
                if name not in tensors or not _equal(written.get_tensor(name), tensors[name], dtype):
                    raise InputError(f"{file}: {name} differs from the checkpoint; check the disk and export again")
                compared += 1
    if compared != len(tensors):
        raise InputError(f"{files[0]}: {len(tensors) - compared} tensors of the checkpoint are missing; export again")
    return compared


def _equal(written: torch.Tensor, stored: LazyTensor, dtype: torch.dtype) -> bool:
    if tuple(written.shape) != stored.shape or written.dtype != _target(stored, dtype):
        return False
    flat = written.reshape(-1)
    start = 0
    for chunk in stored.chunks():
        if not torch.equal(flat[start : start + len(chunk)], chunk.to(written.dtype)):
            return False
        start += len(chunk)
    return start == len(flat)


def _shards(tensors: Mapping[str, LazyTensor], dtype: torch.dtype, shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name, tensor in tensors.items():
        size = _bytes(tensor, dtype)
        if names and filled + size > shard_bytes:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    yield names


def _write_file(file: Path, tensors: Mapping[str, LazyTensor], dtype: torch.dtype) -> Path:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + _bytes(tensor, dtype)
        code = CODES[_target(tensor, dtype)]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, tensor in tensors.items():
            _write_values(stream, name, tensor, _target(tensor, dtype))
    return file


def _write_values(stream: IO[bytes], name: str, tensor: LazyTensor, target: torch.dtype) -> None:
    for chunk in tensor.chunks():
        cast = chunk.to(target)
        if target.is_floating_point and not cast.isfinite().all():
            if not chunk.isfinite().all():
                raise InputError(f"{name}: has non-finite values; export an earlier checkpoint with --step")
            largest = float(chunk.abs().max())
            raise InputError(f"{name}: {largest:.6g} is too large for {str(target)[6:]}; export with --dtype bfloat16")
        stream.write(cast.contiguous().view(torch.uint8).numpy().tobytes())


def _target(tensor: LazyTensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.dtype.is_floating_point else tensor.dtype


def _bytes(tensor: LazyTensor, dtype: torch.dtype) -> int:
    return tensor.size * _target(tensor, dtype).itemsize


_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True)
class _Merged:
    """The values of W + scale B A in float32, computed where they are read."""

    weight: LazyTensor
    down: torch.Tensor
    up: torch.Tensor
    scale: float
    dtype: torch.dtype = torch.float32

    def read(self, start: int, length: int) -> Iterator[torch.Tensor]:
        columns = self.weight.shape[1]
        first, end = start // columns, -(-(start + length) // columns)
        update = self.scale * (self.up[first:end].float() @ self.down.float())
        yield self.weight.stretch(start, length).float() + update.view(-1)[start - first * columns :][:length]


def merge_lora(tensors: Mapping[str, LazyTensor], lora: LoraConfig | None) -> dict[str, LazyTensor]:
    """Return tensors with LoRA weights merged, under their names without LoRA: W + alpha / rank * B A.

    The sums are computed where they are read (Hu et al., ICLR 2022).

    Args:
        tensors: tensors of a checkpoint by name.
        lora: LoRA settings of the run; None returns the tensors unchanged.

    Raises:
        InputError: the update of a tensor is missing or does not fit it.
    """
    if lora is None:
        return dict(tensors)
    merged = {}
    for name, tensor in tensors.items():
        if ".lora_" in name:
            continue
        module, _, kind = name.partition(_BASE)
        if kind == "weight":
            down, up = (tensors.get(module + part) for part in (_DOWN, _UP))
            if not (down and up and len(down.shape) == len(up.shape) == 2 and down.shape[0] == up.shape[1]) or (
                tensor.shape != (up.shape[0], down.shape[1])
            ):
                raise InputError(f"{name}: its LoRA weights are missing or have other shapes")
            values = _Merged(tensor, down.tensor(), up.tensor(), lora.alpha / lora.rank)
            tensor = LazyTensor(name, tensor.shape, values)
        merged[f"{module}.{kind}" if kind else name] = tensor
    return merged


@dataclass(frozen=True)
class _Mean:
    """The weighted mean of two tensors in float32, computed where it is read."""

    weight: LazyTensor
    other: torch.Tensor
    share: float
    dtype: torch.dtype = torch.float32

    def read(self, start: int, length: int) -> Iterator[torch.Tensor]:
        other = self.other.reshape(-1)[start : start + length].float()
        yield self.weight.stretch(start, length).float().lerp(other, self.share)


def average_with(
    tensors: Mapping[str, LazyTensor], start: Mapping[str, torch.Tensor], share: float, prefix: str
) -> dict[str, LazyTensor]:
    """Return tensors of which those below a prefix are a weighted mean with those of another model of the same shapes.

    A mean of a fine-tuned model and the one that it started from often keeps more of what the latter knew at hardly
    any cost (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022). The means are computed where they
    are read.

    Args:
        tensors: tensors of a checkpoint by name.
        start: the other model's, by name without the prefix.
        share: of the other model, in 0..1.
        prefix: of the names of tensors to average.

    Raises:
        InputError: the other model lacks a tensor, or has one of another shape.
    """
    # by the tensor, since all names of a shared parameter have the same one: tied output weights follow the embeddings
    means: dict[int, LazyTensor] = {}
    for name, tensor in tensors.items():
        own = name.removeprefix(prefix)
        if name.startswith(prefix) and tensor.dtype.is_floating_point:
            if own not in start or tuple(start[own].shape) != tensor.shape:
                raise InputError(f"--average-with: has no tensor {own} of shape {list(tensor.shape)}; name the start")
            means[id(tensor)] = LazyTensor(name, tensor.shape, _Mean(tensor, start[own], share))
    return {name: means.get(id(tensor), tensor) for name, tensor in tensors.items()}
