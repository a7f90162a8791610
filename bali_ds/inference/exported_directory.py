"""Files of an exported model directory, and loading of the parts that transformers does not know."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from bali_ds.directories import Output
from bali_ds.errors import InputError, first_line
from bali_ds.files import open_regular, read_json
from bali_ds.locations import is_hub_name
from bali_ds.model.pooling import POOLINGS, MentionPooling
from bali_ds.model.pretrained import ADAPTER, ADAPTER_FILE, PICKLED_WEIGHTS
from bali_ds.parsing import quoted, validated

DESCRIPTION = "bali_ds.json"
POOLING_FILE = "mention_pooling.safetensors"
GRAPH_ENCODER_FILE = "graph_encoder.safetensors"
SENTENCE_SETTINGS = "config_sentence_transformers.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spm.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
)  # fmt: skip
EXPORT = Output(
    "an exported model",
    DESCRIPTION,
    ("format_version", "pooling"),
    (
        "*.safetensors", "*.safetensors.index.json", "config.json", ADAPTER_FILE, "README.md", *TOKENIZER_FILES,
        "modules.json", "sentence_bert_config.json", SENTENCE_SETTINGS,
        "1_WordWeights/config.json", "1_Pooling/config.json", "onnx/model.onnx",
    ),
)  # fmt: skip


class ExportDescription(BaseModel):
    """What `bali_ds.json` says of an exported model; the defaults are those of any other Hugging Face encoder."""

    pooling: str = "mean_tokens"
    mention_pooling: str = "mean"
    markers: tuple[str, str] | None = None
    passage_tokens: Annotated[int, Field(ge=8)] | None = None
    step: int | None = None
    dtype: str | None = None
    fingerprints: dict[str, str | None] = {}
    num_relations: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    num_concepts: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    recipe: dict[str, Any] = {}


def read_description(directory: Path) -> ExportDescription:
    """Return the content of `bali_ds.json`, the defaults if there is none.

    Raises:
        InputError: it is damaged.
    """
    file = directory / DESCRIPTION
    return validated(ExportDescription, read_json(file), str(file)) if file.is_file() else ExportDescription()


class _SentenceSettings(BaseModel):
    prompts: dict[str, str | None] = {}


def read_query_prompt(directory: Path) -> str:
    """Return the prompt that a model of sentence-transformers has for queries; empty without one.

    Raises:
        InputError: the file with the prompts is damaged.
    """
    file = directory / SENTENCE_SETTINGS
    if not file.is_file():
        return ""
    return validated(_SentenceSettings, read_json(file), str(file)).prompts.get("query") or ""


_DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def find_model(name: Path | str) -> Path:
    """Return the directory of a model: an existing one, or `org/name[@revision]` downloaded from the Hugging Face Hub.

    Pickled weights and code are not downloaded.

    Raises:
        InputError: it is neither, or the Hub cannot be reached.
    """
    path = Path(name)
    if path.exists() or not is_hub_name(str(name)):
        return path
    from huggingface_hub import snapshot_download

    repository, _, revision = str(name).partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(_DOWNLOADED)))
    except Exception as error:  # the client raises errors of several libraries
        raise InputError(
            f"{name}: is not a directory here, and the Hugging Face Hub does not have it: {first_line(error)[:200]}"
        ) from error


def check_directory(path: Path) -> None:
    """Check that a directory holds a configuration and weights of a model.

    Raises:
        InputError: it does not.
    """
    if (path / ADAPTER_FILE).is_file():
        raise InputError(f"{path}: {ADAPTER}")
    if not (path / "config.json").is_file():
        inside = path / "export" if (path / "export" / "config.json").is_file() else None
        remedy = f"did you mean {inside}?" if inside else "pass a directory that training or `bali-ds export` wrote"
        raise InputError(f"{path}: is not a model directory: it has no config.json; {remedy}")
    if not any((path / name).is_file() for name in (*WEIGHTS, *PICKLED_WEIGHTS)):
        raise InputError(f"{path}: has a config.json but no weights; expected one of {', '.join(WEIGHTS)}")


def check_module_weights(module: nn.Module, file: Path) -> None:
    """Compare the shapes of a module, which may be on the meta device, with the header of a safetensors file.

    Raises:
        InputError: the file cannot be read, or its tensors do not match the module.
    """
    try:
        with open_regular(file), safe_open(file, framework="pt") as stored:
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: {first_line(error)}") from error
    # weights that a module has under two names are stored once; named_parameters lists them once
    expected = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    wrong = {name for name, shape in expected.items() if shapes.get(name) != shape}
    wrong |= shapes.keys() - module.state_dict().keys()
    if wrong:
        raise InputError(f"{file}: does not match the recipe at {min(wrong)}; export the run again")


def load_module_weights(module: nn.Module, file: Path) -> None:
    """Load the weights of a module from a safetensors file, in float32.

    Raises:
        InputError: the file cannot be read, or its tensors do not match the module.
    """
    check_module_weights(module, file)
    try:
        weights = {name: tensor.float() for name, tensor in load_file(file).items()}
        module.load_state_dict(weights, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{file}: {first_line(error)}") from error


def load_mention_pooling(path: Path, kind: str, width: int) -> MentionPooling:
    """Return the mention pooling of an exported model, of the kind in its description.

    Raises:
        InputError: the kind of pooling is unknown, or its learned weights are missing or do not match.
    """
    if kind not in POOLINGS:
        raise InputError(f"{path}: mention pooling {quoted(kind)} is unknown; known are {', '.join(POOLINGS)}")
    pooling = MentionPooling(kind, width)
    if pooling.score is not None:
        load_module_weights(pooling, path / POOLING_FILE)
    return pooling.eval()
