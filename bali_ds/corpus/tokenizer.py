"""Subword tokenizer on the `tokenizers` library, without torch and transformers."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

from bali_ds.corpus.special_tokens import special_tokens
from bali_ds.corpus.word_cache import WordCache
from bali_ds.errors import InputError, first_line, is_failure
from bali_ds.files import read_bytes, read_json

_WORDPIECE_CLASSES = ("BertTokenizer", "ElectraTokenizer", "DistilBertTokenizer", "PreTrainedTokenizer")
_SETTINGS_FILES = ("special_tokens_map.json", "tokenizer_config.json")
_LARGEST_DEFINITION = 1 << 28


class Encoding(NamedTuple):
    """The tokens of a text, without special tokens.

    Attributes:
        ids: int32 [T].
        starts, ends: int32 [T], ascending, the code points that each token covers without white space around them, end
            exclusive. A token of white space alone is empty and lies where the next word starts.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]


class Tokenizer:
    """Maps text to token ids and code-point offsets.

    Attributes:
        name: what it was loaded from, without parent folders, so that equal input gives equal shards.
        vocab_size: number of ids, added tokens included.
        cls_id, sep_id, pad_id, mask_id, unk_id: ids of the special tokens (unk_id is pad_id without an unknown token).
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any], name: str) -> None:
        self.cls_id, self.sep_id, self.pad_id, self.mask_id, self.unk_id = special_tokens(tokenizer, settings, name)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.name = name
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        if (largest := max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)) >= self.vocab_size:
            raise InputError(
                f"tokenizer {name}: has {self.vocab_size} tokens, but an id of {largest}; number them without gaps"
            )
        self._word_cache = WordCache(self._analyze) if _ends_words_at_spaces(tokenizer) else None

    @classmethod
    def load(cls, source: str | Path) -> "Tokenizer":
        """Load a model directory (tokenizer.json, else vocab.txt), a tokenizer.json, or a name on the Hub.

        Raises:
            InputError: the source is not a tokenizer, or its tokens to begin, end, pad and mask a text are unknown.
        """
        path = Path(source)
        try:
            if path.is_dir():
                settings = _settings(path / name for name in _SETTINGS_FILES)
                return cls(_from_directory(path, settings), settings, path.resolve().name)
            if path.is_file():
                settings = _settings(path.with_name(name) for name in _SETTINGS_FILES)
                return cls(_from_file(path), settings, path.name)
            settings = _settings(_files_on_hub(str(source)))
            return cls(tokenizers.Tokenizer.from_pretrained(str(source)), settings, str(source))
        except InputError:
            raise
        except BaseException as error:  # the library raises plain Exception for every error, or panics
            if not is_failure(error):
                raise
            raise InputError(
                f"tokenizer {source}: cannot be loaded: {first_line(error)[:200]}; pass a model directory with "
                "tokenizer.json or vocab.txt, or a model on the Hub"
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical definition without truncation and padding, which are run-time settings."""
        definition = json.loads(self._tokenizer.to_str())
        definition.pop("truncation", None)
        definition.pop("padding", None)
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of special tokens, ascending."""
        added = self._tokenizer.get_added_tokens_decoder()
        return tuple(sorted(number for number, token in added.items() if token.special))

    def describe(self) -> dict[str, Any]:
        """Return what a shard index records of the tokenizer."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "cls_id": self.cls_id,
            "sep_id": self.sep_id,
            "pad_id": self.pad_id,
            "mask_id": self.mask_id,
            "special_ids": list(self.special_ids),
        }

    def encode(self, text: str) -> Encoding:
        """Return the tokens of a text, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Return the tokens of each text, without special tokens, with offsets in code points."""
        if self._word_cache is None:
            items = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
            return [_encoding(text, item) for text, item in zip(texts, items, strict=True)]
        ids, starts, ends, bounds = self._word_cache(texts)
        columns = [column.astype(np.int32) for column in (ids, starts, ends)]
        return [Encoding(*(column[first:last] for column in columns)) for first, last in pairwise(bounds.tolist())]

    def _analyze(self, text: str) -> NDArray[np.int64]:
        item = self._tokenizer.encode(text, add_special_tokens=False)
        rows = np.empty((len(item), 3), np.int64)
        rows[:, 0] = item.ids
        rows[:, 1:] = np.fromiter(chain.from_iterable(item.offsets), np.int64, 2 * len(item)).reshape(-1, 2)
        return rows

    def encode_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without special tokens, faster than with offsets."""
        return [item.ids for item in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """Return the ids of a prompt before another text; a space at its end is part of the first word after it."""
        return tuple(self.encode_ids([prompt.rstrip(" ")])[0])

    @classmethod
    def query_prompt_ids(cls, name: str | Path, prompt: str | None) -> tuple[int, ...]:
        """Return the ids of the prompt before queries with a tokenizer, loaded only if there is a prompt."""
        return cls.load(name).prompt_ids(prompt) if prompt else ()

    def separates(self, prompt: str) -> bool:
        """Return whether a text after a prompt leaves the tokens of the prompt, by itself, as they are."""
        alone, followed = self.encode_ids([prompt, f"{prompt}aspirin"])
        return followed[: len(alone)] == alone

    def ids_of(self, tokens: tuple[str, str]) -> tuple[int, int]:
        """Return the ids of two tokens.

        Raises:
            InputError: one is not in the vocabulary.
        """
        opening, closing = (self._tokenizer.token_to_id(token) for token in tokens)
        if opening is None or closing is None:
            raise InputError(
                f"tokenizer {self.name}: {tokens[opening is not None]!r} is not in its vocabulary; use two tokens "
                "that are, for example two reserved ones"
            )
        return opening, closing


def _encoding(text: str, item: tokenizers.Encoding) -> Encoding:
    """Return ids and offsets; SentencePiece and untrimmed byte-level tokenizers count the space before a word to it."""
    visible = np.flatnonzero(np.array([not character.isspace() for character in text], bool))
    offsets = np.array(item.offsets, np.int64).reshape(-1, 2)
    first, last = np.searchsorted(visible, offsets).T
    starts = np.append(visible, len(text))[first]
    ends = np.maximum(starts, np.append(0, visible + 1)[last])
    return Encoding(np.array(item.ids, np.int32), starts.astype(np.int32), ends.astype(np.int32))


def _ends_words_at_spaces(tokenizer: tokenizers.Tokenizer) -> bool:
    """Return whether the tokens of a space-separated word are independent of its context, as in BERT's tokenizers."""
    definition = json.loads(tokenizer.to_str())
    types = [(definition[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
    added = definition["added_tokens"]
    plain = not any(token["lstrip"] or token["rstrip"] or " " in token["content"] for token in added)
    return types == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and plain


def _from_file(path: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_buffer(read_bytes(path, _LARGEST_DEFINITION))


def _settings(files: Iterable[Path]) -> dict[str, Any]:
    """Return the keys of all files that exist, later files first."""
    return {key: value for file in files if file.is_file() for key, value in read_json(file).items()}


def _files_on_hub(name: str) -> Iterator[Path]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for file in _SETTINGS_FILES:
        with suppress(EntryNotFoundError):
            yield Path(hf_hub_download(name, file))


def _from_directory(path: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    if (path / "tokenizer.json").is_file():
        return _from_file(path / "tokenizer.json")
    if not (path / "vocab.txt").is_file():
        raise InputError(f"tokenizer {path}: contains neither tokenizer.json nor vocab.txt; save the tokenizer there")
    kind = str(settings.get("tokenizer_class", "BertTokenizer"))
    if kind.removesuffix("Fast") not in _WORDPIECE_CLASSES:
        raise InputError(f"tokenizer {path}: vocab.txt is of a {kind}; save it with transformers as tokenizer.json")
    wordpiece = tokenizers.BertWordPieceTokenizer(
        str(path / "vocab.txt"),
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
    )
    return wordpiece._tokenizer
