"""Safe loading of pretrained models and tokenizers through transformers: no model code is executed, no pickle is read.

Every call of `from_pretrained` and `from_config` is in this file. By default, transformers reacts to a configuration
with `auto_map` by asking on the standard input, and executes the model's code after a "y", which may be a line of the
user's data.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig
from transformers.utils import logging

from bali_ds.errors import InputError, is_failure
from bali_ds.files import read_json
from bali_ds.parsing import quoted, validated
from bali_ds.terminal import verbosity

PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_OTHER_WEIGHTS = ("tf_model.h5", "flax_model.msgpack", "model.ckpt.index", "rust_model.ot")
_CODE = "needs code of its own (auto_map in {}), which is not executed; choose a model that transformers itself has"
_PICKLE = "has its weights as a pickle (pytorch_model.bin), which is not read; convert them to safetensors"
_LARGEST_JSON = 16 << 20
_LONGEST_REASON = 200
_SHORTEST_INPUT = 4
_FROM_SCRATCH = "to train its architecture from scratch, set text_encoder.weights to random"
ADAPTER_FILE = "adapter_config.json"
ADAPTER = f"holds an adapter of peft ({ADAPTER_FILE}); merge it into its encoder and save that"


def load_configuration(path: str | Path) -> PretrainedConfig:
    """Return the configuration of a model directory or Hub name.

    Raises:
        InputError: it does not exist, cannot be parsed, or needs code of its own.
    """
    with _one_line(path, "is not a Hugging Face encoder"):
        _check_json(Path(path))
        values, _ = PretrainedConfig.get_config_dict(path)
        _check_sizes(values, str(path))
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
        return config


def load_tokenizer(path: str | Path) -> Any:
    """Return the tokenizer of a model directory or Hub name.

    Raises:
        InputError: it does not exist, cannot be parsed, needs code of its own, or has no usable length.
    """
    with _one_line(path, "its tokenizer cannot be loaded", "tokenizer_config.json"):
        _check_json(Path(path))
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        longest = tokenizer.model_max_length
        if not isinstance(longest, int | float) or not _SHORTEST_INPUT <= longest < float("inf"):
            raise InputError(f"{path}: tokenizer_config.json: model_max_length {quoted(longest)} is not a length")
        _frame(tokenizer)
        return tokenizer


def _frame(tokenizer: Any) -> None:
    """Let the tokenizer of a decoder begin and end a text as training does; those of encoders do so by themselves."""
    if tokenizer.mask_token is not None or tokenizer.cls_token is not None or tokenizer.eos_token is None:
        return
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    end, begin = tokenizer.eos_token, tokenizer.bos_token or tokenizer.eos_token
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys((begin, end))]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[begin, "$A", end], pair=[begin, "$A", end, "$B", end], special_tokens=ids
    )


def load_model(kind: Any, path: str | Path, **options: Any) -> tuple[Any, bool]:
    """Return a model, and whether its head is newly initialized because the checkpoint has no weights for it.

    Args:
        kind: an auto class of transformers, for example AutoModel.
        path: a model directory or a name on the Hub.
        options: for `from_pretrained`.

    Raises:
        InputError: the model cannot be loaded, needs code of its own, or its weights are not safetensors, or are not
            all there; a pooler, which nothing here uses, may be missing.
    """
    check_weight_files(path)
    config = options.get("config") or load_configuration(path)
    with _one_line(path, "cannot be loaded as an encoder"):
        _check_memory(kind, config, path)
        model, info = kind.from_pretrained(
            path, output_loading_info=True, use_safetensors=True, trust_remote_code=False, **options
        )
        missing = sorted(key for key in info["missing_keys"] if "pooler." not in key)
        prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
        if lacking := [key for key in missing if key.startswith(prefix)]:
            raise InputError(
                f"{path}: its weights lack {len(lacking)} tensors of the architecture, for example {lacking[0]}"
            )
        return model, bool(missing)


def fresh_model(kind: Any, config: PretrainedConfig, path: str | Path) -> Any:
    """Return a model with newly initialized weights.

    Args:
        kind: an auto class of transformers, for example AutoModelForMaskedLM.
        config: what to build.
        path: source of the configuration, for the message.

    Raises:
        InputError: the auto class has no model for this configuration, it needs code of its own, or is too large for
            this machine.
    """
    with _one_line(path, "is not a Hugging Face encoder"):
        _check_memory(kind, config, path)
        return kind.from_config(config, trust_remote_code=False)


def architecture_of(kind: Any, config: PretrainedConfig, path: str | Path) -> Any:
    """Return a model on the meta device, without weights.

    Raises:
        InputError: the auto class has no model for this configuration, or it needs code of its own.
    """
    with _one_line(path, "cannot be loaded as an encoder"), torch.random.fork_rng(devices=[]), torch.device("meta"):
        return kind.from_config(config, trust_remote_code=False)


def partitioned_model(kind: Any, config: PretrainedConfig) -> Any:
    """Return a model of a configuration, built inside a context that partitions its weights.

    Its size is not compared with the memory of this machine.
    """
    with _quiet():
        return kind.from_config(config, trust_remote_code=False)


def shapes_of_encoder(path: str | Path) -> Any:
    """Return the encoder of a model directory or Hub name on the meta device, without reading weights.

    Raises:
        InputError: as `load_configuration` and `architecture_of`.
    """
    return architecture_of(AutoModel, load_configuration(path), path)


def has_weights(directory: Path) -> bool:
    """Return whether a model directory has weights, in a format that is read or in another."""
    return any(directory.glob("*.safetensors")) or any(
        (directory / name).is_file() for name in (*PICKLED_WEIGHTS, *_OTHER_WEIGHTS)
    )


def check_weight_files(path: str | Path) -> None:
    """Check that a model directory has weights that are read here; a name on the Hub is not looked up.

    Raises:
        InputError: the directory has no weights, has them in another format, or holds an adapter, which names another
            model to download.
    """
    directory = Path(path)
    if not directory.is_dir():
        return
    if (directory / ADAPTER_FILE).is_file():
        raise InputError(f"{directory}: {ADAPTER}")
    if any(directory.glob("*.safetensors")):
        return
    if any((directory / name).is_file() for name in PICKLED_WEIGHTS):
        raise InputError(f"{directory}: {_PICKLE}")
    if other := [name for name in _OTHER_WEIGHTS if (directory / name).is_file()]:
        raise InputError(f"{directory}: its weights ({other[0]}) are not read; convert them to safetensors")
    raise InputError(f"{directory}: has no weights (model.safetensors); {_FROM_SCRATCH}")


def _check_json(directory: Path) -> None:
    """Refuse files that transformers would wait for forever, or parse without a limit."""
    if not directory.is_dir():
        return
    if strange := [file for file in directory.iterdir() if not file.is_file() and not file.is_dir()]:
        raise InputError(f"{min(strange)}: is not a regular file; remove it")
    for name in ("config.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            read_json(directory / name, limit=_LARGEST_JSON)


_Size = Annotated[int, Field(ge=1, lt=2**31)]
_Layers = Annotated[int, Field(ge=1, le=1000)]


class _Sizes(BaseModel):
    """Sizes in a configuration under their usual names; transformers checks everything else."""

    vocab_size: _Size | None = None
    hidden_size: _Size | None = None
    intermediate_size: _Size | None = None
    max_position_embeddings: _Size | None = None
    num_attention_heads: _Size | None = None
    num_hidden_layers: _Layers | None = None
    num_layers: _Layers | None = None
    n_layers: _Layers | None = None
    n_layer: _Layers | None = None
    num_labels: Annotated[int, Field(ge=0, le=100_000)] | None = None


def _check_sizes(values: dict[str, Any], where: str) -> None:
    """Refuse sizes that transformers would loop over or allocate, and attention from a repository, which is code."""
    validated(_Sizes, values, f"{where}: config.json")
    for key, value in values.items():
        if key.endswith("attn_implementation") and "/" in str(value):
            raise InputError(
                f"{where}: config.json: {key} {quoted(value)} is code of a repository, which is not executed"
            )
        if isinstance(value, dict):
            _check_sizes(value, where)


def _check_memory(kind: Any, config: PretrainedConfig, path: str | Path) -> None:
    """Refuse a model that is larger than the memory of this machine, before it is allocated."""
    if torch.get_default_device().type == "meta":
        return
    model = architecture_of(kind, config, path)
    size = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise InputError(
            f"{path}: config.json describes a model of {size / 2**30:,.0f} GiB, and this machine has "
            f"{memory / 2**30:,.0f} GiB of memory"
        )


@contextmanager
def _one_line(path: str | Path, summary: str, code_file: str = "config.json") -> Iterator[None]:
    """Turn any exception of transformers into an InputError of one line: a configuration can be wrong in any way."""
    try:
        with _quiet():
            yield
    except InputError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise InputError(f"{path}: {_CODE.format(code_file)}") from error
        if "use_safetensors" in text:  # raised for a name on the Hub
            raise InputError(f"{path}: {_PICKLE}") from error
        raise InputError(f"{path}: {summary}: {text[:_LONGEST_REASON] or type(error).__name__}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers, whose reports are long, except in a verbose process; callers log what matters."""
    if verbosity() == "verbose":
        yield
        return
    shown, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(shown)
        if bars:
            logging.enable_progress_bar()
