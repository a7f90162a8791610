"""Documents with linked mentions, the report of a reader, and its checks of mention offsets."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bali_ds.errors import InputError


class Mention(NamedTuple):
    """A span of a text that refers to one or more concepts.

    Attributes:
        start, end: code points in the document's text, end exclusive.
        text: the mention string in the file.
        type: the entity type in the file, "" if it has none.
        ids: the identifiers in the file; several for a composite mention, empty for an unlinked one.
    """

    start: int
    end: int
    text: str
    type: str
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its mentions.

    Attributes:
        id: for example a PMID.
        text: title, one space, abstract.
        mentions: in the order of the file.
        withdrawn: the source deletes the document of this id; the text is empty.
    """

    id: str
    text: str
    mentions: tuple[Mention, ...] = ()
    withdrawn: bool = False


@dataclass
class ReadReport:
    """What a reader counts: documents, mentions and whatever it drops by reason; linked mentions by type.

    Attributes:
        counts: by name.
        types: linked mentions by entity type.
        surfaces: linked mentions by their string in lower case and concept id.
        remarks: the first ten problems as text.
    """

    counts: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    surfaces: Counter[tuple[str, int]] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    def count(self, name: str, number: int = 1) -> None:
        """Add `number` to a count."""
        self.counts[name] += number

    def remark(self, name: str, where: str) -> None:
        """Count a problem, and keep the first ten as text."""
        self.counts[name] += 1
        if len(self.remarks) < 10:
            self.remarks.append(f"{where}: {name.replace('_', ' ')}")

    def merge(self, other: "ReadReport") -> None:
        """Add the counts of another report and, while there is room, its remarks."""
        self.counts.update(other.counts)
        self.types.update(other.types)
        self.surfaces.update(other.surfaces)
        self.remarks = (self.remarks + other.remarks)[:10]


LARGEST_MISMATCH = 0.25
"""Largest fraction of mentions whose string may differ from the text at their offsets.

Some dumps store normalized strings.
"""


def checked_mentions(text: str, mentions: Iterable[Mention], where: str, report: ReadReport) -> list[Mention]:
    """Return mentions without those of length zero, all of them counted.

    Raises:
        InputError: offsets are not a span of the text; `where` names file and line.
    """
    kept = []
    for mention in mentions:
        if mention.start == mention.end:
            report.remark("mentions_of_length_zero", where)
        else:
            check_mention(text, mention, where, report)
            kept.append(mention)
    return kept


def check_mention(text: str, mention: Mention, where: str, report: ReadReport) -> None:
    """Count a mention, and whether its string differs from the text at its offsets, ignoring case.

    Raises:
        InputError: the offsets are not a span of the text; `where` names file and line.
    """
    if not 0 <= mention.start < mention.end <= len(text):
        raise InputError(
            f"{where}: mention {mention.text[:40]!r} at {mention.start}-{mention.end} is outside the text of "
            f"{len(text)} characters; offsets count code points of title, one space, abstract"
        )
    report.count("mentions")
    if not mention.ids:
        report.count("mentions_unlinked")
    if text[mention.start : mention.end].lower() != mention.text.lower():
        report.remark("surface_mismatches", where)


def check_offsets(path: Path, report: ReadReport) -> None:
    """Refuse a file in which too many mentions differ from the text at their offsets.

    Raises:
        InputError: the fraction of such mentions in `report` is above LARGEST_MISMATCH.
    """
    mentions, wrong = report.counts["mentions"], report.counts["surface_mismatches"]
    if wrong > LARGEST_MISMATCH * mentions:
        raise InputError(
            f"{path}: {wrong} of {mentions} mentions differ from the text at their offsets "
            f"(first: {report.remarks[0]}); the offsets belong to another text"
        )
