"""A trained encoder at work: strings in, vectors out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bali_ds.data.sequences import ranges
from bali_ds.directories import Output
from bali_ds.errors import InputError
from bali_ds.files import read_json
from bali_ds.inference.module_weights import load_mention_pooling
from bali_ds.model.pooling import MentionPooling
from bali_ds.model.pretrained import PICKLED_WEIGHTS, load_model, load_tokenizer
from bali_ds.model.text_encoder import positions_of

POOLINGS = ("mean_tokens", "mean", "cls")
DESCRIPTION = "bali_ds.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spm.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
)  # fmt: skip
EXPORT = Output(
    "an exported model",
    DESCRIPTION,
    ("format_version", "pooling"),
    (
        "*.safetensors", "*.safetensors.index.json", "config.json", "README.md", *TOKENIZER_FILES,
        "modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "onnx/model.onnx",
    ),
)  # fmt: skip
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
TEXTS_AT_ONCE = 65_536

Vectors = NDArray[np.float32]


def load(path: Path | str, *, device: str = "cpu", dtype: torch.dtype | None = None) -> "Encoder":
    """Load an exported model, or any other Hugging Face encoder directory.

    Args:
        path: a directory with config.json, weights and a tokenizer; its `bali_ds.json`, if any, gives the pooling.
        device: where the model computes.
        dtype: what it computes in; None keeps float32 on a CPU and the stored type elsewhere.

    Raises:
        InputError: the directory lacks one of these files, or its weights do not fill the architecture.
    """
    path = Path(path)
    check_directory(path)
    model = _load_model(path, dtype or (torch.float32 if torch.device(device).type == "cpu" else "auto"))
    tokenizer = load_tokenizer(path)
    description = read_json(path / DESCRIPTION) if (path / DESCRIPTION).exists() else {}
    encoder = Encoder(model.to(device), tokenizer, description.get("pooling", "mean_tokens"))
    encoder.mention_pooling = load_mention_pooling(path, description, encoder.width).to(device)
    if markers := description.get("markers"):
        opening, closing = (tokenizer.get_vocab()[token] for token in markers)
        encoder.markers = [opening], [closing]
    return encoder


def check_directory(path: Path) -> None:
    """Check that a directory holds a configuration and weights.

    Raises:
        InputError: it does not.
    """
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: is no model directory: it has no config.json")
    if not any((path / name).is_file() for name in (*WEIGHTS, *PICKLED_WEIGHTS)):
        raise InputError(f"{path}: has a config.json but no weights; expected one of {', '.join(WEIGHTS)}")


def _load_model(path: Path, dtype: torch.dtype | str) -> torch.nn.Module:
    from transformers import AutoModel

    model: torch.nn.Module
    model, lacking = load_model(AutoModel, path, dtype=dtype)
    missing = [key for key in lacking if not key.startswith("pooler.")]
    if missing:
        raise InputError(f"{path}: its weights lack {len(missing)} tensors of the architecture, such as {missing[0]}")
    return model


class Encoder:
    """A transformer encoder with its tokenizer and the pooling that turns token states into one vector.

    "mean_tokens" is the mean of the last layer over the tokens of the string itself, "mean" counts [CLS] and [SEP] too,
    "cls" takes the first token alone. A string without tokens gets the mean over its special tokens.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: Any, pooling: str = "mean_tokens") -> None:
        if pooling not in POOLINGS:
            raise InputError(f"pooling {pooling!r} is unknown; choose one of {', '.join(POOLINGS)}")
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.mention_pooling = MentionPooling("mean", self.width)
        self.markers: tuple[list[int], list[int]] = ([], [])
        self.max_tokens = min(int(tokenizer.model_max_length), positions_of(self.model.config))

    @property
    def width(self) -> int:
        """The length of a vector."""
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    @property
    def _token_budget(self) -> int:
        # what a layer makes of more tokens leaves the caches of a processor; a GPU idles with fewer
        return 2048 if self.device.type == "cpu" else 16384

    def encode(
        self,
        texts: Sequence[str],
        *,
        token_budget: int | None = None,
        normalize: bool = True,
        pooling: str | None = None,
        progress: bool = False,
    ) -> Vectors:
        """Return one vector a text: float32 [n, d], in the order of `texts`.

        Texts of similar length share a batch; the result is a function of the list alone.

        Args:
            texts: any number of strings; what exceeds the model's positions is cut.
            token_budget: tokens, padding included, that go through the model at once; by default what suits the device.
            normalize: scale each vector to unit length.
            pooling: another pooling than the model's own.
            progress: show a bar on the standard error stream.
        """
        from tqdm import tqdm

        pooling = pooling or self.pooling
        if pooling not in POOLINGS:
            raise InputError(f"pooling {pooling!r} is unknown; choose one of {', '.join(POOLINGS)}")
        vectors = np.empty((len(texts), self.width), np.float32)
        bar = tqdm(total=len(texts), desc="encode", unit=" texts", disable=not progress)
        with torch.inference_mode(), bar:
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                tokens, special = self._tokenize(texts[start : start + TEXTS_AT_ONCE])
                for rows in _batches([len(row) for row in tokens], token_budget or self._token_budget):
                    states, mask = self._states([tokens[row] for row in rows])
                    pooled = _pool(states, mask, _pad([special[row] for row in rows], 1).to(mask.device), pooling)
                    vectors[start + np.array(rows)] = pooled.cpu().numpy()
                    bar.update(len(rows))
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def encode_mentions(self, places: Sequence[tuple[str, int, int]], *, token_budget: int | None = None) -> Vectors:
        """Return the unit vector of each mention in its text, pooled from its tokens as alignment trains it.

        Args:
            places: (text, start, end) of each mention, in code points; of a text that exceeds the model's positions
                what is around the mention is read.
            token_budget: as in `encode`.

        Returns:
            float32 [n, d].
        """
        frame = self.tokenizer("")["input_ids"]
        before, after = frame[: len(frame) // 2], frame[len(frame) // 2 :]
        opening, closing = self.markers
        room = self.max_tokens - len(frame) - len(opening) - len(closing)
        texts = {text: row for row, text in enumerate(dict.fromkeys(text for text, _, _ in places))}
        encoded = self.tokenizer([*texts, ""], add_special_tokens=False, return_offsets_mapping=True)
        rows, spans = [], []
        for text, start, end in places:
            ids, offsets = (encoded[what][texts[text]] for what in ("input_ids", "offset_mapping"))
            touching = [n for n, (low, high) in enumerate(offsets) if low < end and high > start]
            if not touching:
                raise InputError(f"{text[start:end]!r}: has no token in {text[:60]!r}")
            tokens, first, last = _around(ids, touching[0], touching[-1] + 1, room)
            left = [*before, *tokens[:first], *opening]
            rows.append([*left, *tokens[first:last], *closing, *tokens[last:], *after])
            spans.append((len(left), len(left) + last - first))
        vectors = np.empty((len(places), self.width), np.float32)
        with torch.inference_mode():
            for batch in _batches([len(row) for row in rows], token_budget or self._token_budget):
                states, _ = self._states([rows[row] for row in batch])
                firsts, ends = np.array([spans[row] for row in batch]).T
                mentions = np.repeat(np.arange(len(batch)), ends - firsts)
                flat = (mentions, ranges(firsts, ends - firsts))
                mention, token = (torch.from_numpy(each).to(self.device) for each in flat)
                pooled = self.mention_pooling(states.float()[mention, token], mention, len(batch))
                vectors[batch] = pooled.cpu().numpy()
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has, [CLS] and [SEP] not counted."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
        return [len(row) for row in encoded["input_ids"]]

    def _tokenize(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        encoded = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_special_tokens_mask=True,
        )
        return encoded["input_ids"], encoded["special_tokens_mask"]

    def _states(self, tokens: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.tensor([len(row) for row in tokens])
        input_ids = _pad(tokens, int(self.tokenizer.pad_token_id or 0))
        mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long().to(self.device)
        return self.model(input_ids=input_ids.to(self.device), attention_mask=mask).last_hidden_state, mask


def _around(tokens: list[int], first: int, last: int, room: int) -> tuple[list[int], int, int]:
    """Return up to `room` tokens around tokens first to last - 1, and where among them these stand."""
    last = min(last, first + room)
    left = max(0, min(first - (room - (last - first)) // 2, len(tokens) - room))
    return tokens[left : left + room], first - left, last - left


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def _batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Yield rows by descending length, as many as fill the budget when padded to the longest of them."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        size = max(1, token_budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _pool(states: torch.Tensor, mask: torch.Tensor, special: torch.Tensor, pooling: str) -> torch.Tensor:
    """Reduce states [n, L, d] to float32 [n, d]; `mask` marks tokens, `special` marks those that frame the string."""
    if pooling == "cls":
        return states[:, 0].float()
    weights = mask
    if pooling == "mean_tokens":
        own = mask * (1 - special)
        weights = torch.where(own.any(dim=1, keepdim=True), own, mask)
    weights = weights.float()
    return torch.einsum("nl,nld->nd", weights, states.float()) / weights.sum(dim=1, keepdim=True)
