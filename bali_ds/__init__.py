"""Aligns biomedical language models with knowledge graphs; `bali_ds.load(DIR)` puts a trained one to work."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from bali_ds.inference.encoder import Encoder

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(path: "Path | str", *, device: str = "cpu") -> "Encoder":
    """Load an exported model or any other Hugging Face encoder directory; `.encode(texts)` gives vectors.

    Raises:
        InputError: the directory cannot be used.
    """
    from bali_ds.inference.encoder import load as load_encoder

    return load_encoder(path, device=device)
