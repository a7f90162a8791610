"""Readers of PubMed's XML: MEDLINE citations of all DTD years, and JATS articles of PubMed Central."""

from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from bali_ds.corpus.document import Document, ReadReport
from bali_ds.corpus.xml_elements import elements, plain_text
from bali_ds.errors import InputError

_ID_TYPES = ("pmid", "pmc", "pmcid", "doi")
_SKIPPED = frozenset(("table-wrap", "fig", "boxed-text", "disp-formula", "supplementary-material", "ref-list"))


def read_medline(path: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the citations of a file of the PubMed baseline or its updates, without mentions.

    The text is title, one space, abstract; a structured abstract keeps its labels ("METHODS: ..."). A citation without
    an abstract takes its English OtherAbstract. A citation that the file deletes is yielded as withdrawn.

    Raises:
        InputError: the file is not well-formed MEDLINE XML.
    """
    for element in elements(path, "MedlineCitation", "DeleteCitation"):
        if element.tag == "DeleteCitation":
            for number in element.iterfind("PMID"):
                report.count("deletions")
                yield Document(plain_text(number), "", withdrawn=True)
            continue
        pmid, article = plain_text(element.find("PMID")), element.find("Article")
        if not pmid or article is None:
            raise InputError(f"{path}:{element.sourceline}: a citation without PMID or Article; is this MEDLINE XML?")
        text = _citation_text(article, element, report)
        if text:
            report.count("documents")
            yield Document(pmid, text)
        else:
            report.count("documents_without_text")


def _citation_text(article: etree._Element, citation: etree._Element, report: ReadReport) -> str:
    title = plain_text(article.find("ArticleTitle"))
    abstract = _abstract(article.find("Abstract"))
    if not abstract:
        others = (other for other in citation.iterfind("OtherAbstract") if other.get("Language", "eng") == "eng")
        abstract = _abstract(next(others, None))
    if not abstract:
        report.count("documents_without_abstract")
    return f"{title} {abstract}".strip()


def _abstract(abstract: etree._Element | None) -> str:
    if abstract is None:
        return ""
    sections = []
    for section in abstract.iterfind("AbstractText"):
        text, label = plain_text(section), section.get("Label", "")
        if text:
            sections.append(text if label in ("", "UNLABELLED") else f"{label}: {text}")
    return " ".join(sections)


def read_jats(path: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the articles of a JATS file: title, then the paragraphs of abstract and body, joined by spaces.

    Tables, figures, formulas and references are skipped. The id is the PMID, else the PMC id, else the DOI.

    Raises:
        InputError: the file is not well-formed JATS XML.
    """
    for article in elements(path, "article"):
        meta = article.find("front/article-meta")
        if meta is None:
            raise InputError(f"{path}:{article.sourceline}: an article without front/article-meta; is this JATS XML?")
        ids = {element.get("pub-id-type"): plain_text(element) for element in meta.iterfind("article-id")}
        name = next((ids[each] for each in _ID_TYPES if ids.get(each)), "")
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
