"""The formats that documents come in, and texts joined with links from another file."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from bali_ds.corpus.bioc import read_bioc_json, read_bioc_xml
from bali_ds.corpus.document import Document, Mention, ReadReport, check_mention, check_share
from bali_ds.corpus.jats import read_jats
from bali_ds.corpus.medline import read_medline
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
        InputError: the format is unknown, or the file is not what it should be.
    """
    if format not in READERS:
        raise InputError(f"corpus format {format!r}: is unknown; use one of {', '.join(READERS)}")
    return READERS[format](Path(path), report)


def join_links(texts: Iterator[Document], links: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the documents of one source with the mentions of another, joined by id.

    Args:
        texts: documents; mentions of their own are replaced.
        links: PubTator rows (id, start, end, string, type, identifiers), held in memory. Columns after the sixth, text
            lines and relations are left out.
        report: receives the counts of the mentions.

    Raises:
        InputError: a row is none, an offset is outside of its text, most mentions do not fit, or no id of a row is
            among the texts.
    """
    own = ReadReport()
    rows: dict[str, list[tuple[str, Mention]]] = defaultdict(list)
    for where, name, mention in read_pubtator_rows(links, own):
        rows[name].append((where, mention))
    linked = len(rows)
    for document in texts:
        found = rows.pop(document.id, [])
        for where, mention in found:
            check_mention(document.text, mention, where, own)
        yield replace(document, mentions=tuple(mention for _, mention in found))
    own.count("documents_without_text", len(rows))
    report.merge(own)
    if linked == len(rows) > 0:
        raise InputError(f"{links}: none of its {linked} documents is among the texts; do both use the same ids?")
    check_share(links, own)
