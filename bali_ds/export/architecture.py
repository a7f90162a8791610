"""Hugging Face architecture of an export: names of its tensors, config.json, tokenizer, sentence-transformers files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bali_ds.checkpoint.lazy_tensor import LazyTensor
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.errors import InputError
from bali_ds.files import write_json
from bali_ds.inference.exported_directory import SENTENCE_SETTINGS
from bali_ds.model.decoder import is_decoder
from bali_ds.model.pretrained import fresh_model, load_configuration, load_tokenizer
from bali_ds.model.text_encoder import positions_of
from bali_ds.model.tokenizer_checks import check_same_tokens

SENTENCE_MODULES = (
    ("", "sentence_transformers.models.Transformer"),
    ("1_WordWeights", "sentence_transformers.models.WordWeights"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Normalize", "sentence_transformers.models.Normalize"),
)
"""Folder and type of each module; servers look for the pooling in 1_Pooling, whatever its number."""


@dataclass(frozen=True)
class ExportArchitecture:
    """The text encoder with its masked language modeling head, or a decoder without a head, on the meta device.

    Attributes:
        source: directory of config.json and tokenizer.
        model: the transformers model.
    """

    source: Path
    model: Any

    @classmethod
    def of(cls, source: Path) -> "ExportArchitecture":
        """Build the architecture of a directory with config.json and tokenizer."""
        from transformers import AutoModel, AutoModelForMaskedLM

        config = load_configuration(source)
        with torch.device("meta"):
            return cls(source, fresh_model(AutoModel if is_decoder(config) else AutoModelForMaskedLM, config, source))

    @property
    def width(self) -> int:
        """Hidden size."""
        return int(self.model.config.hidden_size)

    def rename(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Return the tensors of text encoder and head under their names in transformers.

        The head consists of the modules beside the base model, one or several. A tensor that the architecture ties to
        another one is dropped, unless the checkpoint holds it by itself.

        Raises:
            InputError: a tensor is missing, has another shape, or does not belong to the architecture.
        """
        base = self.model.base_model_prefix
        headless = self.model.base_model is self.model
        heads = [] if headless else [name for name, _ in self.model.named_children() if name != base]
        prefixes = {"text.encoder.": "" if headless else f"{base}."}
        if len(heads) == 1:
            prefixes["text.head."] = f"{heads[0]}."
        else:
            prefixes.update({f"text.head.{number}.": f"{name}." for number, name in enumerate(heads)})
        renamed = {}
        for name, tensor in tensors.items():
            if name.startswith("text."):
                prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
                renamed[prefixes.get(prefix, "") + name.removeprefix(prefix)] = tensor
        tied = self.model.all_tied_weights_keys
        for alias, original in tied.items():
            if alias in renamed and renamed[alias] is renamed.get(original):
                del renamed[alias]
        self._check(renamed, tied)
        return renamed

    def _check(self, found: Mapping[str, LazyTensor], tied: Mapping[str, str]) -> None:
        """Compare names and shapes; tied tensors may be absent."""
        expected = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        if lacking := sorted(expected.keys() - found.keys() - tied.keys()):
            raise InputError(f"{self.source}: the checkpoint lacks {lacking[0]} of this architecture")
        if surplus := sorted(found.keys() - expected.keys()):
            raise InputError(f"{self.source}: {surplus[0]} of the checkpoint is not a weight of this architecture")
        for name, tensor in found.items():
            if tensor.shape != expected[name]:
                raise InputError(
                    f"{self.source}: {name} is {list(tensor.shape)}, config.json says {list(expected[name])}"
                )

    def save(self, out: Path, dtype: torch.dtype) -> None:
        """Write config.json and the files of the tokenizer.

        Raises:
            InputError: as `save_tokenizer`.
        """
        self.model.config.architectures = [type(self.model).__name__]
        self.model.config.dtype = dtype
        self.model.config.save_pretrained(out)
        self.save_tokenizer(out)

    def save_tokenizer(self, out: Path) -> None:
        """Write the files of the tokenizer, whose longest input is that of the model.

        Raises:
            InputError: the written tokenizer splits texts into other tokens than that of the training.
        """
        tokenizer = load_tokenizer(self.source)
        tokenizer.model_max_length = self.longest_text(tokenizer)  # so that truncation=True suffices
        tokenizer.save_pretrained(out)
        check_same_tokens(Tokenizer.load(self.source), load_tokenizer(out), self.source)

    def longest_text(self, tokenizer: Any) -> int:
        """Return the most tokens of a text, special tokens included, that tokenizer and model can read."""
        return min(int(tokenizer.model_max_length), positions_of(self.model))

    def save_sentence_modules(self, out: Path, pooling: str, query_prompt: str | None = None) -> None:
        """Write the files that make the directory a sentence-transformers model: pooling of tokens, unit length.

        The vectors are those of `bali_ds.load`, without code of our own. Names and mentions are means over their own
        tokens in training, so [CLS] and [SEP] have weight 0 here, unless the pooling is "last". Servers that know the
        pooling alone, such as text-embeddings-inference, include both tokens; they require every field that is written.
        A prompt of queries is named "query": `encode_query` and `prompt_name="query"` put it before a text.
        """
        tokenizer = load_tokenizer(self.source)
        modules = [each for each in SENTENCE_MODULES if pooling != "last" or each[0] != "1_WordWeights"]
        rows = [{"idx": row, "name": str(row), "path": path, "type": kind} for row, (path, kind) in enumerate(modules)]
        write_json(out / "modules.json", rows)
        write_json(
            out / "sentence_bert_config.json", {"max_seq_length": self.longest_text(tokenizer), "do_lower_case": False}
        )
        if pooling != "last":
            write_json(out / "1_WordWeights" / "config.json", _word_weights(tokenizer))
        modes = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
        chosen = "lasttoken" if pooling == "last" else "mean_tokens"
        settings = {f"pooling_mode_{mode}": mode == chosen for mode in modes}
        if query_prompt:
            prompts = {"query": query_prompt, "document": ""}
            write_json(out / SENTENCE_SETTINGS, {"prompts": prompts, "default_prompt_name": None})
            settings["include_prompt"] = pooling == "last"
        write_json(out / "1_Pooling" / "config.json", {"word_embedding_dimension": self.width, **settings})
        (out / "2_Normalize").mkdir()


def _word_weights(tokenizer: Any) -> dict[str, Any]:
    """Return the settings of a module that gives special tokens the weight 0."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    special = {by_id[number]: 0.0 for number in tokenizer("")["input_ids"]}
    vocabulary = [by_id.get(number, "") for number in range(max(by_id) + 1)]
    return {"vocab": vocabulary, "word_weights": special, "unknown_word_weight": 1.0}
