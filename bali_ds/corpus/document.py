"""A document with linked mentions, and the account that readers keep of what they saw."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bali_ds.errors import InputError


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


LARGEST_MISMATCH = 0.25
"""Share of mentions whose string may differ from the text at their offsets (some dumps hold normalized strings)."""


def check_mention(text: str, mention: Mention, where: str, report: ReadReport) -> None:
    """Count a mention, and whether the text at its offsets is its string, upper and lower case aside.

    Raises:
        InputError: the offsets are no span of the text; `where` names file and line.
    """
    if not 0 <= mention.start < mention.end <= len(text):
        raise InputError(
            f"{where}: mention {mention.text[:40]!r} at {mention.start}-{mention.end} lies outside the text of "
            f"{len(text)} characters; offsets count code points of title, one space, abstract"
        )
    report.count("mentions")
    if not mention.ids:
        report.count("mentions_unlinked")
    if text[mention.start : mention.end].lower() != mention.text.lower():
        report.remark("surface_mismatches", where)


def check_share(path: Path, report: ReadReport) -> None:
    """Refuse a file most of whose offsets cannot be right.

    Raises:
        InputError: more than LARGEST_MISMATCH of the mentions in `report` differ from the text at their offsets.
    """
    mentions, wrong = report.counts["mentions"], report.counts["surface_mismatches"]
    if wrong > LARGEST_MISMATCH * mentions:
        raise InputError(
            f"{path}: {wrong} of {mentions} mentions differ from the text at their offsets "
            f"(first: {report.remarks[0]}); the offsets do not belong to this text"
        )
