"""Alignment of biomedical language models with knowledge graphs; `bali_ds.load(DIR)` loads a trained encoder.

The names in `__all__` are the public interface. They are imported at their first use, so that importing the package
needs neither torch nor transformers.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from bali_ds.data.webdataset_samples import read_shards
    from bali_ds.graph.knowledge_graph import KnowledgeGraph
    from bali_ds.inference.context import ContextFinder
    from bali_ds.inference.encoder import Encoder
    from bali_ds.inference.linker import Linker

__all__ = ["ContextFinder", "KnowledgeGraph", "Linker", "__version__", "load", "read_shards"]

__version__ = "0.1.0"

_MODULES = {
    "ContextFinder": "bali_ds.inference.context",
    "KnowledgeGraph": "bali_ds.graph.knowledge_graph",
    "Linker": "bali_ds.inference.linker",
    "read_shards": "bali_ds.data.webdataset_samples",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'bali_ds' has no attribute {name!r}")
    with _missing_package_as_input_error():
        return getattr(importlib.import_module(_MODULES[name]), name)


@contextmanager
def _missing_package_as_input_error() -> Iterator[None]:
    """Raise an InputError that names the extra to install if a package is missing."""
    from bali_ds.errors import missing_package

    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_package(error, "infer") from error


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
    with _missing_package_as_input_error():
        from bali_ds.inference.encoder import load as load_encoder
    return load_encoder(path, device=device)
