"""Alignment of biomedical language models with knowledge graphs; `bali_ds.load(DIR)` loads a trained encoder."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from bali_ds.inference.encoder import Encoder

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(path: "Path | str", *, device: str = "cpu") -> "Encoder":
    """Load an exported model, or any other Hugging Face encoder directory.

    Args:
        path: a directory with config.json, weights and a tokenizer, or `org/name[@revision]` on the Hugging Face Hub.
        device: device of the model, for example "cpu" or "cuda".

    Returns:
        an encoder; its method `encode(texts)` returns float32 vectors [n, d].

    Raises:
        InputError: the directory cannot be used, or torch or transformers is not installed.
    """
    from bali_ds.errors import missing_package

    try:
        from bali_ds.inference.encoder import load as load_encoder
    except ModuleNotFoundError as error:
        raise missing_package(error, "infer") from error
    return load_encoder(path, device=device)
