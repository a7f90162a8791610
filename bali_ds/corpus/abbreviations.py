"""Detection of abbreviations that a text defines, such as "heart failure (HF)".

Schwartz and Hearst, A simple algorithm for identifying abbreviation definitions in biomedical text, PSB 2003.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_PARENTHESIS = re.compile(r"\(([^()\s][^()]{0,24})\)")
_WORD_START = re.compile(r"\S+")
_HYPHENATED = re.compile(r"[^\s/()\[\]{}\"]*[-\u2010-\u2013]\Z")


class Abbreviation(NamedTuple):
    """A short form and the span of its long form in the text; code points, end exclusive."""

    short: str
    start: int
    end: int


def find_abbreviations(text: str) -> Iterator[Abbreviation]:
    """Yield the definitions of the form "long form (SHORT)" in text order."""
    for match in _PARENTHESIS.finditer(text):
        short = re.split(r"[,;:]", match[1])[0].strip()
        if not _may_be_short(short):
            continue
        end = len(text[: match.start()].rstrip())
        candidate = _candidate_start(text, end, short)
        start = _long_form_start(short, text, candidate, end)
        if start is not None:
            yield Abbreviation(short, start, end)


def _may_be_short(short: str) -> bool:
    """Check section 3 of the paper: at most two words and ten characters, a letter among them, alphanumeric start."""
    size = 2 <= len(short) <= 10 and len(short.split()) <= 2
    return size and short[0].isalnum() and any(letter.isalpha() for letter in short)


def _candidate_start(text: str, end: int, short: str) -> int:
    """Return the start of the at most min(|A| + 5, 2|A|) words before `end`, with |A| the length of the short form."""
    limit = min(len(short) + 5, len(short) * 2)
    window = max(0, end - 40 * limit)
    sentence = max(text.rfind(mark, window, end) for mark in (". ", "; ", "("))
    begin = max(window, sentence + 1)
    starts = [word.start() for word in _WORD_START.finditer(text, begin, end)]
    return starts[-limit:][0] if starts else end


def _long_form_start(short: str, text: str, begin: int, end: int) -> int | None:
    """Return the start of the long form, or None.

    Characters of the short form are matched from right to left; the first must begin a word of the long form, or a part
    of a hyphenated word, which then belongs to the long form as a whole.
    """
    at = end - 1
    for place in range(len(short) - 1, -1, -1):
        letter = short[place].lower()
        if not letter.isalnum():
            continue
        while at >= begin and (text[at].lower() != letter or (place == 0 and at > begin and text[at - 1].isalnum())):
            at -= 1
        if at < begin:
            return None
        at -= 1
    hyphenated = _HYPHENATED.search(text, begin, at + 1)
    start = hyphenated.start() if hyphenated else at + 1
    long_form = text[start:end]
    if len(long_form) <= len(short) or short in long_form.split():
        return None
    return start
