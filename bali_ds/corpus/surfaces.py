"""Do the offsets of a file fit its text? Offsets are trusted, mismatches counted, and refused above a threshold."""

from pathlib import Path

from bali_ds.corpus.document import Mention, ReadReport
from bali_ds.errors import InputError

LARGEST_MISMATCH = 0.25
"""Share of mentions whose string may differ from the text at their offsets (some dumps hold normalised strings)."""


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
