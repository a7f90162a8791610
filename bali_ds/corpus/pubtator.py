"""Reader of PubTator text: `id|t|title`, `id|a|abstract`, then a row per mention.

A row has the columns id, start, end, string, type, identifiers.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bali_ds.corpus.document import Document, Mention, ReadReport, check_offsets, checked_mentions
from bali_ds.errors import InputError
from bali_ds.files import nonempty_lines

_TEXT = re.compile(r"([^|\t]+)\|([ta])\|(.*)", re.DOTALL)
_VARIANT = re.compile(r"(^|:)[cgmnpr]\|")
_MOST_ROWS = 1 << 20
_UNLINKED = frozenset(("", "-", "-1", "CUI-less", "None"))

_PLACEHOLDER = "NO ABSTRACT"  # some PubTator dumps annotate the placeholder of a missing abstract


@dataclass
class _Record:
    id: str
    title: str | None = None
    abstract: str | None = None
    rows: list[tuple[int, list[str]]] = field(default_factory=list)

    def numbered_rows(self, path: Path) -> Iterator[tuple[str, list[str]]]:
        return ((f"{path}:{number}", fields) for number, fields in self.rows)


def read_pubtator(path: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the documents of a PubTator file, plain or gzip-compressed.

    A record ends where the id changes; blank lines are ignored. The text is title, one space, abstract; the title
    alone if there is no abstract line. Rows whose second field is not a number are relations (`CID`), which are dropped
    and counted; columns after the sixth are ignored.

    Raises:
        InputError: a line is not text, mention or relation; an offset is outside the text; no record has text; or too
            many mentions differ from the text.
    """
    own = ReadReport()
    for record in _records(path):
        if record.title is None and record.abstract is None:
            own.remark("documents_without_text", f"{path}:{record.rows[0][0]}")
            own.count("rows_without_text", len(record.rows))
            continue
        own.count("documents")
        yield _document(path, record, own)
    report.merge(own)
    if own.counts["documents_without_text"] and not own.counts["documents"]:
        raise InputError(
            f"{path}: has mentions but no text lines (id|t|...); name the file with the text by --text FORMAT:PATH"
        )
    check_offsets(path, own)


def read_pubtator_rows(path: Path, report: ReadReport) -> Iterator[tuple[str, str, Mention]]:
    """Yield (file and line, document id, mention) for every row of a PubTator file, with or without text.

    Relations are counted.

    Raises:
        InputError: a line is not text, mention or relation.
    """
    for record in _records(path):
        for where, fields in record.numbered_rows(path):
            if _is_relation(fields):
                report.count("relations")
            else:
                yield where, record.id, _mention(fields, where)


def _records(path: Path) -> Iterator[_Record]:
    record: _Record | None = None
    for number, line in nonempty_lines(path):
        match = _TEXT.fullmatch(line)
        fields = [] if match else line.split("\t")
        if not match and len(fields) < 4:
            raise InputError(f"{path}:{number}: is not id|t|title, id|a|abstract or a row of tab-separated fields")
        key = match[1] if match else fields[0]
        if record is None or key != record.id or (match and match[2] == "t" and record.title is not None):
            if record is not None:
                yield record
            record = _Record(key)
        if not match:
            if len(record.rows) == _MOST_ROWS:
                raise InputError(f"{path}:{number}: document {key} has more than {_MOST_ROWS} rows; check the file")
            record.rows.append((number, fields))
        elif match[2] == "t":
            record.title = match[3]
        elif record.abstract is None:
            record.abstract = match[3]
        else:
            raise InputError(f"{path}:{number}: a second abstract of document {key}; remove one or use two ids")
    if record is not None:
        yield record


def _document(path: Path, record: _Record, report: ReadReport) -> Document:
    text = record.title or ""
    if record.abstract is None:
        report.count("documents_without_abstract")
    else:
        text = f"{text} {record.abstract}"
    mentions = []
    for where, fields in record.numbered_rows(path):
        if _is_relation(fields):
            report.count("relations")
            continue
        if fields[3] == _PLACEHOLDER and not record.abstract:
            report.remark("mentions_of_placeholder", where)
            continue
        mentions += checked_mentions(text, [_mention(fields, where)], where, report)
    return Document(record.id, text, tuple(mentions))


def _is_relation(fields: list[str]) -> bool:
    return not fields[1].lstrip("-").isdecimal()


def _mention(fields: list[str], where: str) -> Mention:
    try:
        start, end = int(fields[1]), int(fields[2])
    except ValueError:
        raise InputError(f"{where}: offsets {fields[1][:20]!r} and {fields[2][:20]!r} are not two integers") from None
    entity_type = fields[4] if len(fields) > 4 else ""
    return Mention(start, end, fields[3], entity_type, split_ids(fields[5]) if len(fields) > 5 else ())


def split_ids(column: str) -> tuple[str, ...]:
    """Return the identifiers in one column: none of an unlinked mention, several of a composite one.

    `;`, `+` and `,` separate; `|` too, except inside a sequence variant such as `p|SUB|G|303|E`.
    """
    groups = ([group] if _VARIANT.search(group) else group.split("|") for group in re.split(r"[;+,]", column))
    names = (part.strip() for group in groups for part in group)
    return tuple(dict.fromkeys(name for name in names if name not in _UNLINKED))
