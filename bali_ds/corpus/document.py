"""A document with linked mentions, and the account that readers keep of what they saw."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


class Mention(NamedTuple):
    """A string that names one or more concepts.

    Attributes:
        start, end: code points in the document's text, end exclusive.
        text: the surface string as the file gives it.
        type: the file's type of the entity, "" where it gives none.
        ids: identifiers as the file gives them; several for a composite mention, none where it is unlinked.
    """

    start: int
    end: int
    text: str
    type: str
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A text and its mentions.

    Attributes:
        id: for example a PMID.
        text: title, one space, abstract.
        mentions: in the order of the file.
        withdrawn: the source takes the document of this id back; it has no text.
    """

    id: str
    text: str
    mentions: tuple[Mention, ...] = ()
    withdrawn: bool = False


@dataclass
class ReadReport:
    """What was seen and what was left out, by name; linked mentions by type; the first few oddities in words."""

    counts: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    def count(self, name: str, number: int = 1) -> None:
        """Add to one count."""
        self.counts[name] += number

    def remark(self, name: str, where: str) -> None:
        """Count an oddity; the first ten are kept in words."""
        self.counts[name] += 1
        if len(self.remarks) < 10:
            self.remarks.append(f"{where}: {name.replace('_', ' ')}")

    def merge(self, other: "ReadReport") -> None:
        """Add the counts of another report and, while there is room, its remarks."""
        self.counts.update(other.counts)
        self.types.update(other.types)
        self.remarks = (self.remarks + other.remarks)[:10]
