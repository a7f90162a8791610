"""Special tokens of a tokenizer by their role, whatever they are called."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import tokenizers

from bali_ds.errors import InputError

_COMMON_NAMES = {
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "pad": ("[PAD]", "<pad>"),
    "mask": ("[MASK]", "<mask>"),
    "unk": ("[UNK]", "<unk>"),
}
"""Names of the tokens of a tokenizer.json that says nothing of their roles and has no configuration beside it."""


class SpecialTokens(NamedTuple):
    """Ids of the tokens that begin and end a text, pad, mask, and stand for what is not in the vocabulary."""

    cls: int
    sep: int
    pad: int
    mask: int
    unk: int


def special_tokens(tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any], name: str) -> SpecialTokens:
    """Return the ids of the special tokens.

    The post-processor, which adds them, decides what begins and ends a text. The settings name the other tokens, and
    all tokens of a tokenizer without a post-processor. Common names are the last resort.

    The tokenizer of a decoder has neither a mask token nor a token that begins a text for classification. Its end token
    then also begins texts, and pads if there is no token for that; the padding token stands for masks.

    Args:
        tokenizer: the tokenizer, with the padding of its file.
        settings: content of special_tokens_map.json and tokenizer_config.json; empty without these files.
        name: of the tokenizer, for messages.

    Raises:
        InputError: no token has a role, or two common names are in the vocabulary. Without an unknown token the
            padding token takes its place.
    """

    def named(*keys: str) -> list[int | None]:
        texts = [_content(settings.get(key)) for key in keys]
        return [tokenizer.token_to_id(text) for text in texts if text is not None]

    empty = tokenizer.encode("")
    added = [number for number, seen in zip(empty.ids, empty.attention_mask, strict=True) if seen]
    first, last = (added[0], added[-1]) if len(added) > 1 else (None, None)
    unknown = getattr(tokenizer.model, "unk_token", None)
    end = [] if named("mask_token", "cls_token") else named("eos_token")
    candidates = {
        "cls": [first, *named("cls_token", "bos_token"), *end],
        "sep": [last, *named("sep_token", "eos_token")],
        "pad": [*named("pad_token"), (tokenizer.padding or {}).get("pad_id"), *end],
        "mask": [*named("mask_token"), *(named("pad_token") if end else ()), *end],
        "unk": [*named("unk_token"), tokenizer.token_to_id(unknown) if unknown else None],
    }
    ids: dict[str, int] = {}
    for role, own in candidates.items():
        number = next((each for each in own if each is not None), None)
        default = ids["pad"] if role == "unk" else None
        ids[role] = _by_name(tokenizer, role, name, default) if number is None else number
    return SpecialTokens(**ids)


def _content(value: Any) -> str | None:
    """Return the text of a token, which settings give as a string or as an object with its properties."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None


def _by_name(tokenizer: tokenizers.Tokenizer, role: str, name: str, default: int | None) -> int:
    """Return the id of the only common name of a role that is in the vocabulary, else the default if there is one."""
    ids = {each: number for each in _COMMON_NAMES[role] if (number := tokenizer.token_to_id(each)) is not None}
    if len(ids) > 1:
        raise InputError(
            f"tokenizer {name}: has both {' and '.join(ids)}; name the right one as {role}_token in "
            "tokenizer_config.json"
        )
    number = next(iter(ids.values()), default)
    if number is None:
        raise InputError(
            f"tokenizer {name}: has no {role} token; name it as {role}_token in tokenizer_config.json, or use another "
            "tokenizer"
        )
    return number
