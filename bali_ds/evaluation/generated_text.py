"""Text of the passages and facts that a decoder generated, and their table in the report."""

from collections.abc import Sequence
from html import escape
from typing import Any

from bali_ds.corpus.tokenizer import Tokenizer

FILE = "generated.json"
"""A file of the run directory: a list of {"sample", "passage", "facts"}, the last two {"true", "written"}."""


def passage_text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Return the text between [CLS] and the first [SEP]; the [SEP] may be missing."""
    return _text(_until(ids[1:], tokenizer.sep_id), tokenizer)


def fact_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Return the facts of `[CLS] fact [SEP] fact [SEP] ... [SEP]`, up to two [SEP] in a row or the end."""
    facts, rest = [], list(ids[1:])
    while fact := _until(rest, tokenizer.sep_id):
        facts.append(_text(fact, tokenizer))
        rest = rest[len(fact) + 1 :]
    return facts


def _until(ids: Sequence[int], end: int) -> list[int]:
    ids = list(ids)
    return ids[: ids.index(end)] if end in ids else ids


def _text(ids: list[int], tokenizer: Tokenizer) -> str:
    return tokenizer.decode(ids).strip()


def generated_table(samples: list[dict[str, Any]]) -> str:
    """Return an HTML table of the samples in `FILE`: true and generated text of both directions."""
    body = "".join(
        f'<tr class="group"><th colspan="3">{escape(sample["sample"])}</th></tr>'
        + _row("text to facts", *("<br>".join(map(escape, sample["facts"][which])) for which in _COLUMNS))
        + _row("graph to text", *(escape(sample["passage"][which]) for which in _COLUMNS))
        for sample in samples
    )
    head = "".join(f"<th>{column}</th>" for column in ("", *_COLUMNS))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>{body}</table></div>'


_COLUMNS = ("true", "written")
_NOTHING = '<span class="quiet">nothing</span>'


def _row(direction: str, true: str, written: str) -> str:
    cells = "".join(f"<td>{text or _NOTHING}</td>" for text in (true, written))
    return f"<tr><th>{direction}</th>{cells}</tr>"
