"""Loads what others trained through transformers: no code of a model is executed and no pickle is read.

Every call of `from_pretrained` and `from_config` is in this file. Left to itself, transformers answers a configuration
with `auto_map` by a question on the standard input and executes the model's code after a "y", which may be a line of
the user's data.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.utils import logging

from bali_ds.errors import InputError, first_line

PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_CODE = "needs code of its own (auto_map in {}), which is not executed; choose a model that transformers itself has"
_PICKLE = "has its weights as a pickle (pytorch_model.bin), which is not read; save them as safetensors"
_ADAPTER = "holds an adapter of peft (adapter_config.json); merge it into its encoder and save that"


def load_configuration(path: str | Path) -> PretrainedConfig:
    """Return the configuration of a model directory or Hub name.

    Raises:
        InputError: there is none, it cannot be understood, or it needs code of its own.
    """
    with _one_line(path, "is no Hugging Face encoder"):
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
        return config


def load_tokenizer(path: str | Path) -> Any:
    """Return the tokenizer of a model directory or Hub name.

    Raises:
        InputError: there is none, it cannot be understood, or it needs code of its own.
    """
    with _one_line(path, "its tokenizer cannot be loaded", "tokenizer_config.json"):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def load_model(kind: Any, path: str | Path, **options: Any) -> tuple[Any, list[str]]:
    """Return a model and the names of the weights that its files lack, ascending.

    Args:
        kind: an auto class of transformers, for example AutoModel.
        path: a model directory or a name on the Hub.
        options: for `from_pretrained`.

    Raises:
        InputError: the model cannot be loaded, needs code of its own, or its weights are not safetensors.
    """
    _check_files(Path(path))
    with _one_line(path, "cannot be loaded as an encoder"), _quiet():
        model, info = kind.from_pretrained(
            path, output_loading_info=True, use_safetensors=True, trust_remote_code=False, **options
        )
        return model, sorted(info["missing_keys"])


def fresh_model(kind: Any, config: PretrainedConfig, path: str | Path) -> Any:
    """Return a model with weights drawn afresh.

    Args:
        kind: an auto class of transformers, for example AutoModelForMaskedLM.
        config: what to build.
        path: where the configuration came from, for the message.

    Raises:
        InputError: the configuration has no such model, or it needs code of its own.
    """
    with _one_line(path, "is no Hugging Face encoder"):
        return kind.from_config(config, trust_remote_code=False)


def _check_files(directory: Path) -> None:
    """Refuse pickled weights before transformers looks for them, and adapters, which name another model to fetch."""
    if any((directory / name).is_file() for name in PICKLED_WEIGHTS) and not any(directory.glob("*.safetensors")):
        raise InputError(f"{directory}: {_PICKLE}")
    if (directory / "adapter_config.json").is_file():
        raise InputError(f"{directory}: {_ADAPTER}")


@contextmanager
def _one_line(path: str | Path, summary: str, code_file: str = "config.json") -> Iterator[None]:
    """Turn whatever transformers raises into one line: a stranger's configuration can be wrong in every way."""
    try:
        yield
    except Exception as error:
        text = str(error).strip()
        if "trust_remote_code" in text:
            raise InputError(f"{path}: {_CODE.format(code_file)}") from error
        if "use_safetensors" in text:  # of a name on the Hub
            raise InputError(f"{path}: {_PICKLE}") from error
        raise InputError(f"{path}: {summary}: {first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers: its report on missing weights is long and alarming; callers say what matters."""
    shown, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(shown)
        if bars:
            logging.enable_progress_bar()
