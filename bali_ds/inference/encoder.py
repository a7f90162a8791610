"""Text encoder for inference: texts or mentions in, vectors out."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from bali_ds.data.sequences import ranges
from bali_ds.errors import InputError
from bali_ds.inference.exported_directory import (
    DESCRIPTION,
    check_directory,
    find_model,
    load_mention_pooling,
    read_description,
    read_query_prompt,
)
from bali_ds.inference.mention_windows import mention_windows
from bali_ds.model.pooling import MentionPooling
from bali_ds.model.pretrained import load_model, load_tokenizer
from bali_ds.model.text_encoder import positions_of
from bali_ds.model.tokenizer_checks import check_embeddings
from bali_ds.parsing import quoted
from bali_ds.progress_bar import progress_bar

POOLINGS = ("mean_tokens", "mean", "cls", "last")
TEXTS_AT_ONCE = 65_536
PASSAGE_TOKENS = 128
"""Tokens of a passage that a model reads of which nothing else is known, as `bali-ds shards build` cuts them."""

Vectors = NDArray[np.float32]


def load(path: Path | str, *, device: str = "cpu", dtype: torch.dtype | None = None) -> "Encoder":
    """Load an exported model, or any other Hugging Face encoder directory.

    Args:
        path: a directory with config.json, weights and a tokenizer, or `org/name[@revision]` on the Hugging Face Hub;
            `bali_ds.json`, if present, sets the pooling, and the prompt "query" of sentence-transformers goes before
            queries.
        device: device of the model, for example "cpu" or "cuda"; "auto" takes a GPU if there is one.
        dtype: dtype of the model; None uses float32 on a CPU and the stored dtype elsewhere.

    Raises:
        InputError: the directory lacks one of these files, or its weights are incomplete.
    """
    path, device = find_model(path), available_device(device)
    check_directory(path)
    own = torch.float32 if torch.device(device).type == "cpu" else "auto"
    model, _ = load_model(AutoModel, path, dtype=dtype or own)
    tokenizer = load_tokenizer(path)
    check_embeddings(path, max(tokenizer.get_vocab().values(), default=0), model)
    description = read_description(path)
    encoder = Encoder(model.to(device), tokenizer, description.pooling, read_query_prompt(path))
    encoder.passage_tokens = min(description.passage_tokens or PASSAGE_TOKENS, encoder.max_tokens)
    encoder.mention_pooling = load_mention_pooling(path, description.mention_pooling, encoder.width).to(device)
    if description.markers:
        vocabulary = tokenizer.get_vocab()
        if missing := set(description.markers) - vocabulary.keys():
            raise InputError(f"{path / DESCRIPTION}: the marker {quoted(min(missing))} is not in the vocabulary")
        opening, closing = (vocabulary[token] for token in description.markers)
        encoder.markers = [opening], [closing]
    return encoder


def available_device(name: str) -> str:
    """Return a device that this machine has; "auto" is a GPU if there is one, else the CPU.

    Raises:
        InputError: the machine has no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise InputError(f"device {quoted(name)}: is not a device; use auto, cpu or cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name}: torch finds no GPU on this machine; use cpu, or run bali-ds doctor")
    return name


class EncoderLike(Protocol):
    """Any encoder of texts and mentions as unit vectors, such as `Encoder`."""

    def encode(self, texts: Sequence[str], *, query: bool = False, progress: bool = False) -> Vectors:
        """Return the vector of each text: float32 [n, d]."""
        ...

    def encode_mentions(self, places: Sequence[tuple[str, int, int]]) -> Vectors:
        """Return the vector of each mention in its text: float32 [n, d]."""
        ...


class Encoder:
    """Transformer encoder with its tokenizer and a pooling of token states into one vector.

    Pooling "mean_tokens" is the mean of the last layer over the tokens of the text, "mean" includes [CLS] and [SEP],
    "cls" is the first token, "last" the last one, which ends the text. A text without tokens gets the mean over its
    special tokens. A prompt goes before queries, which are mentions and questions, and not before names; means leave
    its tokens out, as sentence-transformers counts them.
    """

    def __init__(
        self, model: torch.nn.Module, tokenizer: Any, pooling: str = "mean_tokens", query_prompt: str = ""
    ) -> None:
        if pooling not in POOLINGS:
            raise InputError(f"pooling {quoted(pooling)} is unknown; use one of {', '.join(POOLINGS)}")
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.query_prompt = query_prompt
        self.mention_pooling = MentionPooling("mean", self.width)
        self.markers: tuple[list[int], list[int]] = ([], [])
        self.max_tokens = min(int(tokenizer.model_max_length), positions_of(self.model))
        self.passage_tokens = min(PASSAGE_TOKENS, self.max_tokens)

    @property
    def width(self) -> int:
        """Dimension of the vectors."""
        return int(self.model.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def _token_budget(self) -> int:
        # more tokens do not fit into the cache of a CPU; fewer do not fill a GPU
        return 2048 if self.device.type == "cpu" else 16384

    def encode(
        self,
        texts: Sequence[str],
        *,
        query: bool = False,
        token_budget: int | None = None,
        normalize: bool = True,
        pooling: str | None = None,
        progress: bool = False,
    ) -> Vectors:
        """Return the vector of each text: float32 [n, d], in the order of `texts`.

        Texts of similar length share a batch.

        Args:
            texts: any number of texts; each is truncated to the positions of the model.
            query: whether they are queries, which the prompt of the model goes before.
            token_budget: tokens per batch, padding included; None chooses by device.
            normalize: whether vectors are scaled to unit length.
            pooling: a pooling to use instead of the model's own.
            progress: whether to show a progress bar on stderr.
        """
        pooling = pooling or self.pooling
        if pooling not in POOLINGS:
            raise InputError(f"pooling {quoted(pooling)} is unknown; use one of {', '.join(POOLINGS)}")
        vectors = np.empty((len(texts), self.width), np.float32)
        prompt = self.query_prompt if query else ""
        skipped = self._prompt_tokens(prompt)
        bar = progress_bar("encode", len(texts), "texts", shown=progress)
        with torch.inference_mode(), bar:
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                tokens, special = self._tokenize([prompt + text for text in texts[start : start + TEXTS_AT_ONCE]])
                order, pooled = [], []  # on the device until all are there: each copy would wait for it
                for rows in _batches([len(row) for row in tokens], token_budget or self._token_budget):
                    states, mask = self._states([tokens[row] for row in rows])
                    special_rows = _pad([special[row] for row in rows], 1).to(mask.device)
                    pooled.append(_pool(states, mask, special_rows, pooling, skipped))
                    order += rows
                    bar.update(len(rows))
                vectors[start + np.array(order)] = torch.cat(pooled).cpu().numpy()
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def encode_mentions(
        self, places: Sequence[tuple[str, int, int]], *, max_tokens: int | None = None, token_budget: int | None = None
    ) -> Vectors:
        """Return the unit vector of each mention in its text, pooled over the mention's tokens as in training.

        A longer text is read in windows, each once for all mentions in it. With entity markers, each mention is read
        by itself, with its own markers around it. The prompt of queries goes before each window.

        Args:
            places: (text, start, end) of each mention, in code points.
            max_tokens: most tokens of a window, special tokens included and those of the prompt not; None takes
                `passage_tokens`.
            token_budget: tokens per batch, as in `encode`.

        Returns:
            float32 [n, d].

        Raises:
            InputError: a mention has no token.
        """
        rows, spans = self._windows(places, max_tokens or self.passage_tokens)
        vectors = np.empty((len(places), self.width), np.float32)
        with torch.inference_mode():
            for batch in _batches([len(row) for row in rows], token_budget or self._token_budget):
                states, _ = self._states([rows[row] for row in batch])
                found = [(place, *span, mention) for place, row in enumerate(batch) for span, mention in spans[row]]
                places_in_batch, firsts, ends, mentions = np.array(found).T
                count = len(mentions)
                flat = (
                    np.repeat(places_in_batch, ends - firsts), ranges(firsts, ends - firsts),
                    np.repeat(np.arange(count), ends - firsts),
                )  # fmt: skip
                place, token, segment = (torch.from_numpy(each).to(self.device) for each in flat)
                vectors[mentions] = self.mention_pooling(states.float()[place, token], segment, count).cpu().numpy()
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _windows(
        self, places: Sequence[tuple[str, int, int]], max_tokens: int
    ) -> tuple[list[list[int]], list[list[tuple[tuple[int, int], int]]]]:
        """Return the tokens of each window, and the spans of the mentions in it with their rows in `places`."""
        frame = self.tokenizer("")["input_ids"]
        prompt = self.tokenizer(self.query_prompt.rstrip(" "), add_special_tokens=False)["input_ids"]
        before, after = [*frame[: len(frame) // 2], *prompt], frame[len(frame) // 2 :]
        opening, closing = self.markers
        room = min(max_tokens, self.max_tokens - len(prompt)) - len(frame) - len(opening) - len(closing)
        of_text: dict[str, list[int]] = {}
        for row, (text, _, _) in enumerate(places):
            of_text.setdefault(text, []).append(row)
        encoded = self._whole([*of_text, ""], return_offsets_mapping=True)
        rows, spans = [], []
        tokenized = zip(of_text.values(), encoded["input_ids"], encoded["offset_mapping"], strict=False)
        for mentions, ids, offsets in tokenized:
            touched = [_touched(offsets, places[row]) for row in mentions]
            groups = [[each] for each in range(len(mentions))] if opening else [list(range(len(mentions)))]
            for group in groups:
                for window in mention_windows([touched[each] for each in group], len(ids), room):
                    found = []
                    tokens = [*before, *ids[window.first : window.last], *after]
                    for each in window.mentions:
                        first, last = (min(end, window.last) - window.first for end in touched[group[each]])
                        first, last = first + len(before), last + len(before)
                        found.append(((first + len(opening), last + len(opening)), mentions[group[each]]))
                        if opening:
                            tokens[last:last], tokens[first:first] = closing, opening
                    rows.append(tokens)
                    spans.append(found)
        return rows, spans

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without [CLS] and [SEP]."""
        if not texts:
            return []
        return [len(row) for row in self._whole(list(texts), return_attention_mask=False)["input_ids"]]

    def _whole(self, texts: list[str], **options: bool) -> Any:
        """Tokenize texts of any length without special tokens; transformers would warn of those that are too long."""
        return self.tokenizer(texts, add_special_tokens=False, verbose=False, **options)

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

    def _prompt_tokens(self, prompt: str) -> int:
        """Return how many tokens a text with a prompt begins with that are not its own, special ones included."""
        if not prompt:
            return 0
        tokens = self.tokenizer(prompt)["input_ids"]
        return len(tokens) - (tokens[-1] in self.tokenizer.all_special_ids)

    def _states(self, tokens: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.tensor([len(row) for row in tokens])
        input_ids = _pad(tokens, int(self.tokenizer.pad_token_id or 0))
        mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long().to(self.device)
        return self.model(input_ids=input_ids.to(self.device), attention_mask=mask).last_hidden_state, mask


def _touched(offsets: Sequence[tuple[int, int]], place: tuple[str, int, int]) -> tuple[int, int]:
    """Return the first token that a mention touches, and one past the last."""
    text, start, end = place
    first = bisect_right(offsets, start, key=lambda pair: pair[1])
    last = bisect_left(offsets, end, key=lambda pair: pair[0])
    if first >= last:
        raise InputError(f"{text[start:end]!r}: has no token in {text[:60]!r}")
    return first, last


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def _batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Yield batches of rows by descending length, each at most `token_budget` tokens when padded to its longest row."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        size = max(1, token_budget // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _pool(states: torch.Tensor, mask: torch.Tensor, special: torch.Tensor, pooling: str, skipped: int) -> torch.Tensor:
    """Reduce states [n, L, d] to float32 [n, d].

    `mask` marks tokens and `special` special tokens; means leave out the first `skipped` tokens.
    """
    if pooling == "cls":
        return states[:, 0].float()
    if pooling == "last":
        return states[torch.arange(len(states), device=mask.device), mask.sum(dim=1) - 1].float()
    rest = mask * (torch.arange(mask.shape[1], device=mask.device) >= skipped)
    mask = torch.where(rest.any(dim=1, keepdim=True), rest, mask)  # of a text without more than the prompt, the prompt
    weights = mask
    if pooling == "mean_tokens":
        own = mask * (1 - special)
        weights = torch.where(own.any(dim=1, keepdim=True), own, mask)
    weights = weights.float()
    return torch.einsum("nl,nld->nd", weights, states.float()) / weights.sum(dim=1, keepdim=True)
