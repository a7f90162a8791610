"""Export of LoRA weights alone, as an adapter of peft: megabytes beside an encoder of many gigabytes."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from bali_ds.checkpoint.lazy_tensor import LazyTensor
from bali_ds.config import LoraConfig, TextEncoderConfig
from bali_ds.errors import InputError

STEM = "adapter_model"
"""Name of the file of the weights, without its ending."""
_ENCODER, _PEFT, _LORA = "text.encoder.", "base_model.model.", ".lora_"


def adapter_weights(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the LoRA weights of the text encoder among the tensors of a checkpoint, under their names in peft."""
    return {
        name.replace(_ENCODER, _PEFT, 1).replace(".default.", "."): tensor
        for name, tensor in tensors.items()
        if name.startswith(_ENCODER) and _LORA in name
    }


def lora_of(encoder: TextEncoderConfig) -> LoraConfig:
    """Return the LoRA settings of a run whose text encoder is its start with an adapter, and nothing else.

    Raises:
        InputError: it has no LoRA, or differs from the start in something that an adapter does not hold.
    """
    if encoder.lora is None:
        raise InputError("--adapter: the run has no text_encoder.lora; export it without --adapter")
    changes = {"weights": encoder.weights == "random", "layer": encoder.layer, "bidirectional": encoder.bidirectional}
    if changed := next((name for name, given in changes.items() if given), None):
        raise InputError(
            f"--adapter: text_encoder.{changed} of the run changes the encoder itself, which an adapter does not hold; "
            "export it without --adapter"
        )
    return encoder.lora


def write_adapter_config(directory: Path, lora: LoraConfig, base: str, names: Iterable[str]) -> None:
    """Write `adapter_config.json`, which names every module that the adapter changes in full.

    Args:
        directory: that holds the weights.
        lora: settings of the run.
        base: directory or Hub name of the encoder that the adapter belongs to.
        names: of the weights in peft.
    """
    import peft

    peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=sorted({name.removeprefix(_PEFT).split(_LORA)[0] for name in names}),
        bias="none",
        task_type="FEATURE_EXTRACTION",
        base_model_name_or_path=base,
        inference_mode=True,
    ).save_pretrained(str(directory))
