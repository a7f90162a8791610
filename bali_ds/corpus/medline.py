"""MEDLINE and PubMed XML of all DTD years: titles and abstracts, citations taken back."""

from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from bali_ds.corpus.document import Document, ReadReport
from bali_ds.corpus.xml_elements import elements, plain_text
from bali_ds.errors import InputError


def read_medline(path: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the citations of a file of the PubMed baseline or its updates, without mentions.

    The text is title, one space, abstract; a structured abstract keeps its labels ("METHODS: ..."). An abstract in
    another language than English stands in for none. A citation that the file deletes is yielded as withdrawn.

    Raises:
        InputError: the file is no well-formed MEDLINE XML.
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
        text = _text(article, element, report)
        if text:
            report.count("documents")
            yield Document(pmid, text)
        else:
            report.count("documents_without_text")


def _text(article: etree._Element, citation: etree._Element, report: ReadReport) -> str:
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
