"""Word normalization for dictionary lookup: case, plural and British or American spelling."""

import hashlib
import re
from itertools import accumulate
from typing import NamedTuple

# Runs of letters and digits; punctuation between clauses counts as a word, so that no name matches across it.
_WORD = re.compile(r"([^\W_]+|[,;:.!?()\[\]])")
_CACHE_LIMIT = 1 << 20
_LONGEST_SYMBOL = 5


class Words(NamedTuple):
    """The words of a text.

    Attributes:
        texts: the words as written.
        starts: code points at which they begin.
    """

    texts: list[str]
    starts: list[int]


def split_words(text: str) -> Words:
    """Return the words of a text; white space, hyphens and other characters between them are dropped."""
    parts = _WORD.split(text)
    ends = list(accumulate(map(len, parts)))
    return Words(parts[1::2], ends[:-1:2])


def normalize_word(word: str) -> str:
    """Return the normal form that spellings of a word share: "Tumours" and "tumor", "anaemia" and "anemia".

    A short word in capitals may be a symbol, whose last "S" is not that of a plural.
    """
    is_plural = not (word.isupper() and len(word) <= _LONGEST_SYMBOL)
    word = word.lower()
    if len(word) > 3 and word.isalpha():
        word = _singular(word) if is_plural else word
        word = word.replace("our", "or").replace("ae", "e").replace("oe", "e")
    return word


def long_words(text: str) -> set[str]:
    """Return the normalized words of a text that have at least three letters or digits."""
    return {normalize_word(word) for word in split_words(text).texts if len(word) > 2}


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


class WordHasher:
    """Maps normalized words to 64-bit hashes that are equal on every machine; caches the words that it has hashed."""

    def __init__(self) -> None:
        self._hashes: dict[str, int] = {}

    def __call__(self, words: list[str]) -> list[int]:
        """Return the hashes of words, none of them 0."""
        hashes = self._hashes
        try:
            return [hashes[word] for word in words]
        except KeyError:
            if len(hashes) > _CACHE_LIMIT:
                hashes.clear()
            for word in words:
                if word not in hashes:
                    digest = hashlib.blake2b(normalize_word(word).encode(), digest_size=8).digest()
                    hashes[word] = int.from_bytes(digest, "little") | 1
            return [hashes[word] for word in words]
