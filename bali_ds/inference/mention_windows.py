"""Windows of a tokenized text around its mentions: each is encoded once for all mentions in it."""

from collections.abc import Sequence
from typing import NamedTuple


class Window(NamedTuple):
    """Consecutive tokens of a text, and the mentions that are read in them.

    Attributes:
        first: the first token.
        last: one past the last token.
        mentions: indices of mentions.
    """

    first: int
    last: int
    mentions: list[int]


def mention_windows(spans: Sequence[tuple[int, int]], length: int, room: int) -> list[Window]:
    """Cover mentions with few windows that leave each of them context on both sides.

    A window begins a quarter of its size before its first mention, and takes the mentions after it that end a quarter
    before its own end, or anywhere in it if the text ends there.

    Args:
        spans: the first token of each mention and one past its last, n pairs.
        length: tokens of the text.
        room: most tokens of a window; a longer mention is cut.

    Returns:
        Windows of which every mention has one; all mentions of a text of at most `room` tokens share it.
    """
    margin = room // 4
    windows: list[Window] = []
    for mention in sorted(range(len(spans)), key=lambda each: spans[each]):
        first, last = spans[mention]
        if windows and last <= windows[-1].last - (margin if windows[-1].last < length else 0):
            windows[-1].mentions.append(mention)
        else:
            start = max(0, min(first - margin, length - room))
            windows.append(Window(start, min(start + room, length), [mention]))
    return windows
