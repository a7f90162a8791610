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

    Mentions that follow each other share a window as long as a quarter of it is left before the first and after the
    last of them, or less where the text begins or ends. They are in its middle.

    Args:
        spans: the first token of each mention and one past its last, n pairs.
        length: tokens of the text.
        room: most tokens of a window; a longer mention is cut.

    Returns:
        Windows of which every mention has one; all mentions of a text of at most `room` tokens share it.
    """
    margin = room // 4
    groups: list[list[int]] = []
    reach = -1
    for mention in sorted(range(len(spans)), key=lambda each: spans[each]):
        first, last = spans[mention]
        if last > reach:
            end = min(max(0, min(first - margin, length - room)) + room, length)
            reach = end if end == length else end - margin
            groups.append([])
        groups[-1].append(mention)
    return [_window(group, spans, length, room) for group in groups]


def _window(group: list[int], spans: Sequence[tuple[int, int]], length: int, room: int) -> Window:
    first, last = spans[group[0]][0], max(spans[each][1] for each in group)
    slack = room - (last - first)
    start = max(0, min(first - max(slack, 0) // 2, length - room))
    return Window(start, min(start + room, length), group)
