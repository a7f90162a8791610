"""JATS XML as PubMed Central gives it: title, abstract and body of articles."""

from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from bali_ds.corpus.document import Document, ReadReport
from bali_ds.corpus.xml_elements import elements, plain_text
from bali_ds.errors import InputError

_ID_KINDS = ("pmid", "pmc", "pmcid", "doi")
_SKIPPED = frozenset(("table-wrap", "fig", "boxed-text", "disp-formula", "supplementary-material", "ref-list"))


def read_jats(path: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the articles of a file: title, then the paragraphs of abstract and body, a space between them.

    Tables, figures, formulae and references are left out. The id is the PMID, else PMC id, else DOI.

    Raises:
        InputError: the file is no well-formed JATS XML.
    """
    for article in elements(path, "article"):
        meta = article.find("front/article-meta")
        if meta is None:
            raise InputError(f"{path}:{article.sourceline}: an article without front/article-meta; is this JATS XML?")
        ids = {kind.get("pub-id-type"): plain_text(kind) for kind in meta.iterfind("article-id")}
        name = next((ids[kind] for kind in _ID_KINDS if ids.get(kind)), "")
        if not name:
            raise InputError(f"{path}:{article.sourceline}: an article without PMID, PMC id or DOI")
        parts = [plain_text(meta.find("title-group/article-title"))]
        for root in (meta.find("abstract"), article.find("body")):
            parts += [] if root is None else list(_paragraphs(root))
        report.count("documents")
        yield Document(name, " ".join(part for part in parts if part))


def _paragraphs(element: etree._Element) -> Iterator[str]:
    for child in element.iterchildren(tag=etree.Element):
        if child.tag == "p":
            yield plain_text(child)
        elif child.tag not in _SKIPPED:
            yield from _paragraphs(child)
