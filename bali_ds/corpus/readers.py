"""Corpus readers by format, and the join of texts with mentions from another file."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from bali_ds.corpus.bioc import read_bioc_json, read_bioc_xml
from bali_ds.corpus.document import Document, Mention, ReadReport, check_offsets, checked_mentions
from bali_ds.corpus.pubmed_xml import read_jats, read_medline
from bali_ds.corpus.pubtator import read_pubtator, read_pubtator_rows
from bali_ds.corpus.span_json import read_bern2, read_jsonl
from bali_ds.errors import InputError

Reader = Callable[[Path, ReadReport], Iterator[Document]]

READERS: dict[str, Reader] = {
    "pubtator": read_pubtator,
    "medline": read_medline,
    "jats": read_jats,
    "bioc-xml": read_bioc_xml,
    "bioc-json": read_bioc_json,
    "bern2": read_bern2,
    "jsonl": read_jsonl,
}


def read_documents(format: str, path: Path, report: ReadReport) -> Iterator[Document]:  # noqa: A002
    """Yield the documents of one file; `report` is complete when the iteration is.

    Raises:
        InputError: the format is unknown, or the file is not of this format.
    """
    if format not in READERS:
        raise InputError(f"corpus format {format!r}: is unknown; use one of {', '.join(READERS)}")
    return READERS[format](Path(path), report)


def join_mentions(texts: Iterator[Document], mentions: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the documents of one source with the mentions of another, joined by id.

    Args:
        texts: documents; their own mentions are replaced.
        mentions: file of PubTator rows (id, start, end, string, type, identifiers), read into memory. Columns after the
            sixth, text lines and relations are ignored.
        report: receives the counts of the mentions.

    Raises:
        InputError: a row is malformed, an offset is outside of its text, too many mentions differ from the text, or no
            row has the id of a text.
    """
    own = ReadReport()
    rows: dict[str, list[tuple[str, Mention]]] = defaultdict(list)
    for where, name, mention in read_pubtator_rows(mentions, own):
        rows[name].append((where, mention))
    num_documents = len(rows)
    for document in texts:
        found = [
            kept
            for where, mention in rows.pop(document.id, [])
            for kept in checked_mentions(document.text, [mention], where, own)
        ]
        yield replace(document, mentions=tuple(found))
    own.count("documents_without_text", len(rows))
    report.merge(own)
    if num_documents == len(rows) > 0:
        raise InputError(f"{mentions}: no text has the id of one of its {num_documents} documents; check the ids")
    check_offsets(mentions, own)
