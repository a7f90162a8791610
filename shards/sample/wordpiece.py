"""Deterministic training of a WordPiece vocabulary by pair merging.

The trainer of the `tokenizers` library breaks ties in hash-table order, so its runs differ.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

Pair = tuple[str, str]


def train_wordpiece(texts: Iterable[str], size: int, special: Iterable[str], fewest: int = 2) -> list[str]:
    """Return a vocabulary of at most `size` tokens: special tokens, characters, then merged pairs in order.

    Each round merges the most frequent pair of adjacent tokens, ties in alphabetical order, and stops below `fewest`
    occurrences (Sennrich, Haddow and Birch, ACL 2016, algorithm 1, with "##" before tokens within words).
    """
    counts = count_words(texts)
    words = {word: [word[0], *(f"##{letter}" for letter in word[1:])] for word in counts}
    tokens = [*special, *sorted({token for split in words.values() for token in split})]
    pairs: Counter[Pair] = Counter()
    holders: defaultdict[Pair, set[str]] = defaultdict(set)
    for word in words:
        count_pairs(word, words, pairs, holders, counts[word])
    while len(tokens) < size:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < fewest:
            break
        merged = best[0] + best[1].removeprefix("##")
        tokens.append(merged)
        for word in sorted(holders[best]):
            count_pairs(word, words, pairs, holders, -counts[word])
            words[word] = merge(words[word], best, merged)
            count_pairs(word, words, pairs, holders, counts[word])
    return list(dict.fromkeys(tokens))


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Return how often each word occurs, split and normalized as in BERT."""
    normalizer, split = BertNormalizer(lowercase=True), BertPreTokenizer()
    return Counter(word for text in texts for word, _ in split.pre_tokenize_str(normalizer.normalize_str(text)))


def count_pairs(
    word: str, words: dict[str, list[str]], pairs: Counter[Pair], holders: defaultdict[Pair, set[str]], times: int
) -> None:
    """Add the adjacent tokens of a word to the counts, or subtract them if `times` is negative."""
    for pair in pairwise(words[word]):
        pairs[pair] += times
        if times > 0:
            holders[pair].add(word)
        else:
            holders[pair].discard(word)


def merge(split: list[str], pair: Pair, merged: str) -> list[str]:
    """Return the tokens of a word with every occurrence of `pair` merged."""
    found: list[str] = []
    for token in split:
        if found and (found[-1], token) == pair:
            found[-1] = merged
        else:
            found.append(token)
    return found
