"""Decoders as text encoders (Llama, Qwen, Mistral, Gemma and their kin), loaded without the whole model on any rank."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from bali_ds.errors import InputError, first_line
from bali_ds.files import read_json
from bali_ds.model.pretrained import architecture_of, check_weight_files, partitioned_model
from bali_ds.parsing import quoted

_LARGEST_INDEX = 64 << 20


class WeightPartition(Protocol):
    """How weights are partitioned over ranks while a model is built; `bali_ds.training.partition` has DeepSpeed's."""

    def building(self) -> AbstractContextManager[Any]:
        """Return a context in which every new parameter is partitioned as soon as its module is complete."""

    def whole(self, parameter: nn.Parameter) -> AbstractContextManager[bool]:
        """Return a context in which a parameter is whole, and whether this rank's values of it are kept."""


class StoredWeight(NamedTuple):
    """Where a weight is stored: a safetensors file and its name there."""

    file: Path
    name: str


def is_decoder(config: PretrainedConfig) -> bool:
    """Return whether transformers has an architecture as a causal language model and without a masked one."""
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING


def decoder_weights(path: str, config: PretrainedConfig) -> dict[str, StoredWeight]:
    """Return where each parameter of a decoder is stored; only headers are read.

    Raises:
        InputError: the path is not a directory, its weights are not safetensors, or one is missing or of another shape.
    """
    directory = Path(path)
    check_weight_files(directory)
    model: Any = architecture_of(AutoModel, config, path)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    prefix = f"{model.base_model_prefix}."
    found: dict[str, StoredWeight] = {}
    for file in _files(directory):
        try:
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118
                    own = name if name in shapes else name.removeprefix(prefix)
                    if own not in shapes:
                        continue  # the head of the causal language model
                    if (shape := tuple(stored.get_slice(name).get_shape())) != shapes[own]:
                        raise InputError(f"{file}: {name} is {list(shape)}, config.json says {list(shapes[own])}")
                    found[own] = StoredWeight(file, name)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: {first_line(error)}") from error
    if missing := sorted(shapes.keys() - found.keys()):
        raise InputError(f"{path}: the weights lack {missing[0]}; the checkpoint is of another architecture")
    return found


def _files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise InputError(
            f"text_encoder.path: {directory} is not a directory; download a decoder for ZeRO stage 3 first: "
            f"hf download {directory} --local-dir DIR"
        )
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    content = read_json(index, limit=_LARGEST_INDEX)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
        raise InputError(f"{index}: weight_map {quoted(names)} does not name files of its directory")
    return sorted({directory / name for name in names.values()})


def load_partitioned(
    config: PretrainedConfig, weights: dict[str, StoredWeight], partition: WeightPartition
) -> PreTrainedModel:
    """Return a decoder of which every rank holds its part; a collective call.

    One rank reads one weight at a time and sends it to the others, so that no rank ever holds more than one whole.

    Args:
        config: of the decoder.
        weights: as `decoder_weights` returns them.
        partition: over the ranks.
    """
    with partition.building():
        model: PreTrainedModel = partitioned_model(AutoModel, config)
    for name, parameter in model.named_parameters():
        with partition.whole(parameter) as kept:
            if kept:
                parameter.data.copy_(_read(weights[name]))
    return model


def _read(weight: StoredWeight) -> Tensor:
    with safe_open(weight.file, framework="pt") as stored:
        tensor: Tensor = stored.get_tensor(weight.name)
        return tensor
