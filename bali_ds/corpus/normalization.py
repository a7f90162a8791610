"""Words as the dictionary compares them: case, plural and British or American spelling folded."""

import hashlib
import re
from itertools import accumulate
from typing import NamedTuple

# Letters and digits in runs; punctuation that separates clauses counts as a word, so that no name reaches across it.
_WORD = re.compile(r"([^\W_]+|[,;:.!?()\[\]])")
_KNOWN_LIMIT = 1 << 20


class Words(NamedTuple):
    """The words of a text.

    Attributes:
        texts: as they stand.
        starts: code points at which they begin.
    """

    texts: list[str]
    starts: list[int]


def split_words(text: str) -> Words:
    """Return the words of a text; white space, hyphens and other signs between them are left out."""
    pieces = _WORD.split(text)
    ends = list(accumulate(map(len, pieces)))
    return Words(pieces[1::2], ends[:-1:2])


def fold(word: str) -> str:
    """Return the form under which spellings of a word meet: "Tumours" and "tumor", "anaemia" and "anemia"."""
    word = word.lower()
    if len(word) > 3 and word.isalpha():
        word = _singular(word)
        word = word.replace("our", "or").replace("ae", "e").replace("oe", "e")
    return word


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


class WordHasher:
    """Folds words and gives each form a 64-bit number, the same on every machine; remembers what it has seen."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def __call__(self, words: list[str]) -> list[int]:
        """Return the numbers of words."""
        known = self._known
        try:
            return [known[word] for word in words]
        except KeyError:
            if len(known) > _KNOWN_LIMIT:
                known.clear()
            for word in words:
                if word not in known:
                    digest = hashlib.blake2b(fold(word).encode(), digest_size=8).digest()
                    known[word] = int.from_bytes(digest, "little") | 1
            return [known[word] for word in words]
