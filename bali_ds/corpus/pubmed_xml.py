"""Readers of PubMed's XML: MEDLINE citations of all DTD years, and JATS articles of PubMed Central."""

from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from bali_ds.corpus.document import Document, ReadReport
from bali_ds.errors import InputError
from bali_ds.xml_elements import elements, plain_text

_ID_TYPES = ("pmid", "pmc", "pmcid", "doi")

# Elements whose text is not part of the sentences around them, most of them of JATS; each is counted.
_SKIPPED = frozenset((
    "alternatives", "array", "boxed-text", "caption", "chem-struct-wrap", "code", "disp-formula", "disp-formula-group",
    "fig", "fig-group", "floats-group", "fn", "fn-group", "graphic", "inline-graphic", "inline-supplementary-material",
    "label", "math", "media", "preformat", "ref-list", "supplementary-material", "table", "table-wrap",
    "table-wrap-group", "tex-math",
))  # fmt: skip
# Elements that end a word, unlike inline markup.
_BLOCKS = frozenset((
    "attrib", "break", "def", "def-head", "def-item", "def-list", "disp-quote", "hr", "list", "list-item", "p", "sec",
    "speech", "statement", "term", "term-head", "title", "verse-group", "verse-line",
))  # fmt: skip
# Types of abstracts that do not describe the whole article in sentences, or only more briefly.
_OTHER_ABSTRACTS = frozenset((
    "graphic", "graphical", "highlights", "key-points", "precis", "short", "stereochemical", "teaser", "toc", "video",
    "web-summary",
))  # fmt: skip


def read_medline(path: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the citations of a file of the PubMed baseline or its updates, without mentions.

    The text is title, one space, abstract; a structured abstract keeps its labels ("METHODS: ..."). A citation without
    an abstract takes its English OtherAbstract. Formulas are skipped and counted. Books and chapters are read too. A
    citation that the file deletes is yielded as withdrawn.

    Raises:
        InputError: the file is not well-formed MEDLINE XML.
    """
    for element in elements(path, report.counts, "MedlineCitation", "BookDocument", "DeleteCitation"):
        if element.tag == "DeleteCitation":
            for number in element.iterfind("PMID"):
                report.count("deletions")
                yield Document(plain_text(number), "", withdrawn=True)
            continue
        is_book = element.tag == "BookDocument"
        if is_book:
            report.count("documents_of_books")
        pmid, article = plain_text(element.find("PMID")), element if is_book else element.find("Article")
        if not pmid or article is None:
            raise InputError(f"{path}:{element.sourceline}: a citation without PMID or Article; is this MEDLINE XML?")
        text = _citation_text(article, element, report)
        if text:
            report.count("documents")
            yield Document(pmid, text)
        else:
            report.count("documents_without_text")


def _citation_text(article: etree._Element, citation: etree._Element, report: ReadReport) -> str:
    title = _paragraph(article.find("ArticleTitle"), report) or _paragraph(article.find("Book/BookTitle"), report)
    abstract = _abstract(article.find("Abstract"), report)
    if not abstract:
        others = (other for other in citation.iterfind("OtherAbstract") if other.get("Language", "eng") == "eng")
        abstract = _abstract(next(others, None), report)
    if not abstract:
        report.count("documents_without_abstract")
    return f"{title} {abstract}".strip()


def _abstract(abstract: etree._Element | None, report: ReadReport) -> str:
    if abstract is None:
        return ""
    sections = []
    for section in abstract.iterfind("AbstractText"):
        text, label = _paragraph(section, report), section.get("Label", "")
        if text:
            sections.append(text if label in ("", "UNLABELLED") else f"{label}: {text}")
    return " ".join(sections)


def read_jats(path: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the articles of a JATS file: title, then the paragraphs of abstract and body, joined by spaces.

    Tables, figures, captions, formulas, footnotes and references are skipped and counted, also inside a paragraph; the
    items of a list are part of its paragraph. The abstract is the first that is not graphical or a teaser. The id is
    the PMID, else the PMC id, else the DOI.

    Raises:
        InputError: the file is not well-formed JATS XML.
    """
    for article in elements(path, report.counts, "article"):
        meta = article.find("front/article-meta")
        if meta is None:
            raise InputError(f"{path}:{article.sourceline}: an article without front/article-meta; is this JATS XML?")
        ids = {element.get("pub-id-type"): plain_text(element) for element in meta.iterfind("article-id")}
        name = next((ids[each] for each in _ID_TYPES if ids.get(each)), "")
        if not name:
            raise InputError(f"{path}:{article.sourceline}: an article without PMID, PMC id or DOI")
        parts = [_paragraph(meta.find("title-group/article-title"), report)]
        for root in (_main_abstract(meta, report), article.find("body")):
            parts += [] if root is None else list(_paragraphs(root, report))
        text = " ".join(part for part in parts if part)
        report.count("documents" if text else "documents_without_text")
        if text:
            yield Document(name, text)


def _main_abstract(meta: etree._Element, report: ReadReport) -> etree._Element | None:
    abstracts = meta.findall("abstract")
    chosen = [each for each in abstracts if each.get("abstract-type", "").lower() not in _OTHER_ABSTRACTS]
    first = next((each for each in chosen if each.get("abstract-type") is None), next(iter(chosen), None))
    for other in abstracts:
        if other is not first:
            report.count("skipped_abstract")
    return first


def _paragraphs(element: etree._Element, report: ReadReport) -> Iterator[str]:
    for child in element.iterchildren(tag=etree.Element):
        if child.tag == "p":
            yield _paragraph(child, report)
        elif child.tag in _SKIPPED:
            report.count(f"skipped_{child.tag}")
        else:
            yield from _paragraphs(child, report)


def _paragraph(element: etree._Element | None, report: ReadReport) -> str:
    """Return the text of an element without what is skipped, runs of white space as one space."""
    return "" if element is None else " ".join("".join(_pieces(element, report)).split())


def _pieces(element: etree._Element, report: ReadReport) -> Iterator[str]:
    yield element.text or ""
    for child in element.iterchildren(tag=etree.Element):
        separator = " " if child.tag in _BLOCKS or child.tag in _SKIPPED else ""
        yield separator
        if child.tag in _SKIPPED:
            report.count(f"skipped_{child.tag}")
        else:
            yield from _pieces(child, report)
        yield f"{separator}{child.tail or ''}"
