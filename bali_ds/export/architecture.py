"""Hugging Face architecture of an export: names of its tensors, config.json, tokenizer, sentence-transformers files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bali_ds.checkpoint.lazy_tensor import LazyTensor
from bali_ds.errors import InputError
from bali_ds.files import write_json
from bali_ds.model.pretrained import fresh_model, load_configuration, load_tokenizer
from bali_ds.model.text_encoder import positions_of

SENTENCE_MODULES = (
    ("", "sentence_transformers.models.Transformer"),
    ("1_WordWeights", "sentence_transformers.models.WordWeights"),
    ("1_Pooling", "sentence_transformers.models.Pooling"),
    ("2_Normalize", "sentence_transformers.models.Normalize"),
)
"""Folder and type of each module; servers look for the pooling in 1_Pooling, whatever its number."""


@dataclass(frozen=True)
class ExportArchitecture:
    """The text encoder with its masked language modeling head, on the meta device.

    Attributes:
        source: directory of config.json and tokenizer.
        model: the transformers model.
    """

    source: Path
    model: Any

    @classmethod
    def of(cls, source: Path) -> "ExportArchitecture":
        """Build the architecture of a directory with config.json and tokenizer."""
        from transformers import AutoModelForMaskedLM

        config = load_configuration(source)
        with torch.device("meta"):
            return cls(source, fresh_model(AutoModelForMaskedLM, config, source))

    @property
    def width(self) -> int:
        """Hidden size."""
        return int(self.model.config.hidden_size)

    def rename(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Return the tensors of text encoder and head under their names in transformers.

        The head consists of the modules beside the base model, one or several.

        Raises:
            InputError: a tensor is missing, has another shape, or does not belong to the architecture.
        """
        base = self.model.base_model_prefix
        heads = [name for name, _ in self.model.named_children() if name != base]
        prefixes = {"text.encoder.": f"{base}."}
        if len(heads) == 1:
            prefixes["text.head."] = f"{heads[0]}."
        else:
            prefixes.update({f"text.head.{number}.": f"{name}." for number, name in enumerate(heads)})
        renamed = {}
        for name, tensor in tensors.items():
            for prefix, published in prefixes.items():
                if name.startswith(prefix):
                    renamed[published + name.removeprefix(prefix)] = tensor
        for alias, original in (self.model._tied_weights_keys or {}).items():
            if original in renamed:
                renamed.pop(alias, None)
        self._check(renamed)
        return renamed

    def _check(self, found: Mapping[str, LazyTensor]) -> None:
        tied = set(self.model._tied_weights_keys or {})
        expected = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items() if name not in tied}
        for name, shape in expected.items():
            if name not in found:
                raise InputError(f"{self.source}: the checkpoint lacks {name} of this architecture")
            if found[name].shape != shape:
                raise InputError(f"{self.source}: {name} is {list(found[name].shape)}, config.json says {list(shape)}")
        if surplus := sorted(set(found) - set(expected)):
            raise InputError(f"{self.source}: {surplus[0]} of the checkpoint is not a weight of this architecture")

    def save(self, out: Path, dtype: torch.dtype) -> None:
        """Write config.json and the files of the tokenizer."""
        self.model.config.architectures = [type(self.model).__name__]
        self.model.config.dtype = dtype
        self.model.config.save_pretrained(out)
        tokenizer = load_tokenizer(self.source)
        tokenizer.model_max_length = self.longest_text(tokenizer)  # so that truncation=True suffices
        tokenizer.save_pretrained(out)

    def longest_text(self, tokenizer: Any) -> int:
        """Return the most tokens of a text, special tokens included, that tokenizer and model can read."""
        return min(int(tokenizer.model_max_length), positions_of(self.model.config))

    def save_sentence_modules(self, out: Path) -> None:
        """Write the files that make the directory a sentence-transformers model: mean over tokens, unit length.

        Names and mentions are means over their own tokens in training, so [CLS] and [SEP] have weight 0 here. The
        vectors are those of `bali_ds.load`, without code of our own. Servers that know the pooling alone, such as
        text-embeddings-inference, include both tokens; they require every field that is written here.
        """
        tokenizer = load_tokenizer(self.source)
        rows = [
            {"idx": row, "name": str(row), "path": path, "type": kind}
            for row, (path, kind) in enumerate(SENTENCE_MODULES)
        ]
        write_json(out / "modules.json", rows)
        write_json(
            out / "sentence_bert_config.json", {"max_seq_length": self.longest_text(tokenizer), "do_lower_case": False}
        )
        by_id = {number: token for token, number in tokenizer.get_vocab().items()}
        special = {by_id[number]: 0.0 for number in tokenizer("")["input_ids"]}
        vocabulary = [by_id.get(number, "") for number in range(max(by_id) + 1)]
        weights = {"vocab": vocabulary, "word_weights": special, "unknown_word_weight": 1.0}
        write_json(out / "1_WordWeights" / "config.json", weights)
        modes = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
        pooling = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in modes}
        write_json(out / "1_Pooling" / "config.json", {"word_embedding_dimension": self.width, **pooling})
        (out / "2_Normalize").mkdir()
