"""A WordPiece vocabulary by pair merging, the same on every machine and in every run.

The trainer of the `tokenizers` library breaks ties by the order of a hash table, so that no two runs agree.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

Pair = tuple[str, str]


def train_wordpiece(texts: Iterable[str], size: int, special: Iterable[str], fewest: int = 2) -> list[str]:
    """Return a vocabulary of at most `size` pieces: special tokens, characters, then merged pairs as they are found.

    Each round merges the pair of neighbouring pieces that occurs most often, ties by the alphabet, and stops below
    `fewest` occurrences (Sennrich, Haddow and Birch, ACL 2016, algorithm 1, on pieces with a "##" within words).
    """
    counts = count_words(texts)
    words = {word: [word[0], *(f"##{letter}" for letter in word[1:])] for word in counts}
    pieces = [*special, *sorted({piece for split in words.values() for piece in split})]
    pairs: Counter[Pair] = Counter()
    holders: defaultdict[Pair, set[str]] = defaultdict(set)
    for word in words:
        count_pairs(word, words, pairs, holders, counts[word])
    while len(pieces) < size:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < fewest:
            break
        merged = best[0] + best[1].removeprefix("##")
        pieces.append(merged)
        for word in sorted(holders[best]):
            count_pairs(word, words, pairs, holders, -counts[word])
            words[word] = merge(words[word], best, merged)
            count_pairs(word, words, pairs, holders, counts[word])
    return list(dict.fromkeys(pieces))


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Return how often each word occurs, split and folded as BERT does."""
    normalise, split = BertNormalizer(lowercase=True), BertPreTokenizer()
    return Counter(word for text in texts for word, _ in split.pre_tokenize_str(normalise.normalize_str(text)))


def count_pairs(
    word: str, words: dict[str, list[str]], pairs: Counter[Pair], holders: defaultdict[Pair, set[str]], times: int
) -> None:
    """Add the neighbouring pieces of a word to the counts, or take them away where `times` is negative."""
    for pair in pairwise(words[word]):
        pairs[pair] += times
        if times > 0:
            holders[pair].add(word)
        else:
            holders[pair].discard(word)


def merge(split: list[str], pair: Pair, merged: str) -> list[str]:
    """Return the pieces of a word with every occurrence of `pair` made one."""
    found: list[str] = []
    for piece in split:
        if found and (found[-1], piece) == pair:
            found[-1] = merged
        else:
            found.append(piece)
    return found
