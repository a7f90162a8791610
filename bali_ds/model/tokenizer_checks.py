"""Checks that shards and transformers read a text as the same tokens, and that an encoder has embeddings for them.

Shards are built with the file tokenizer.json. Training, export and every use of an export take the tokenizer class of
transformers, which may replace parts of that file: lowercasing, accents, the space before the first word.
"""

from pathlib import Path
from typing import Any

from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.errors import InputError
from bali_ds.model.pretrained import load_tokenizer

PROBES = (
    "renal failure", "Renal Failure", " two  spaces ", "naïve Sjögren’s café", "IL-2/IFN-γ, β-catenin (p<0.05)",
    "e.g. 3.5 mg/kg; CO₂", "\ttab\nline", "ﬁbrosis", "腎不全", "🧬", "<mask> [MASK]", "don't", "1234567", "word",
)  # fmt: skip
"""Strings on which tokenizers differ in case, accents, spaces, compatibility characters, punctuation and bytes."""


def matching_tokenizer(path: str | Path, encoder: Any) -> Tokenizer:
    """Return the tokenizer of shards for an encoder, after comparing it with that of transformers and the embeddings.

    Args:
        path: a model directory or a name on the Hub.
        encoder: its encoder, which may be on the meta device.

    Raises:
        InputError: a tokenizer cannot be loaded, they differ, or the encoder has no embedding for a token.
    """
    tokenizer = Tokenizer.load(path)
    check_same_tokens(tokenizer, load_tokenizer(path), path)
    check_embeddings(path, tokenizer.vocab_size - 1, encoder)
    return tokenizer


def check_same_tokens(reference: Tokenizer, tokenizer: Any, path: str | Path) -> None:
    """Compare the tokens of both tokenizers on `PROBES`, with and without special tokens.

    Args:
        reference: the tokenizer of shards.
        tokenizer: the tokenizer of transformers.
        path: where that was loaded from, for the message.

    Raises:
        InputError: they differ.
    """
    for text in ("", *PROBES):
        ids = reference.encode(text).ids.tolist()
        framed = [reference.cls_id, *ids, reference.sep_id]
        for expected, special in ((ids, False), (framed, True)):
            found = tokenizer(text, add_special_tokens=special)["input_ids"]
            if found != expected:
                raise InputError(
                    f"{path}: {type(tokenizer).__name__} of transformers reads {text!r} as {_shown(tokenizer, found)}, "
                    f"and the tokenizer of shards, tokenizer.json, as {_shown(tokenizer, expected)}; correct "
                    "tokenizer_config.json, or save the tokenizer there again with transformers"
                )


def check_embeddings(path: str | Path, largest: int, encoder: Any) -> None:
    """Compare the largest token id with the embeddings of an encoder, which may be on the meta device.

    Raises:
        InputError: a token has no embedding.
    """
    rows = encoder.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise InputError(f"{path}: its tokenizer has an id of {largest}, but the model has {rows} embeddings")


def _shown(tokenizer: Any, ids: list[int]) -> str:
    return repr(" ".join(map(str, tokenizer.convert_ids_to_tokens(ids))))
