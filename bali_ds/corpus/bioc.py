"""Readers of BioC: XML as in PubTator Central and JSON as in PubTator 3."""

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lxml import etree
from pydantic import BaseModel

from bali_ds.corpus.document import Document, Mention, ReadReport, check_offsets, checked_mentions
from bali_ds.corpus.json_values import checked, json_values
from bali_ds.corpus.pubtator import split_ids
from bali_ds.errors import InputError
from bali_ds.xml_elements import elements


class _Location(BaseModel):
    offset: int
    length: int


class _Annotation(BaseModel):
    infons: dict[str, Any] = {}
    text: str | None = None
    locations: list[_Location] = []


class _Sentence(BaseModel):
    offset: int = 0
    text: str | None = None
    annotations: list[_Annotation] = []


class _Passage(_Sentence):
    sentences: list[_Sentence] = []


class _Document(BaseModel):
    id: str | int
    passages: list[_Passage]


# Keys of an annotation's identifier in lower case, and the prefix that their values may lack.
_IDENTIFIER_KEYS = {
    "identifier": "",
    "cui": "",
    "umls": "",
    "umls cui": "",
    "umls_cui": "",
    "mesh": "MESH:",
    "omim": "OMIM:",
    "ncbi gene": "NCBIGENE:",
    "ncbi gene identifier": "NCBIGENE:",
    "ncbi gene id": "NCBIGENE:",
    "gene_id": "NCBIGENE:",
    "ncbi taxonomy": "NCBITAXON:",
    "ncbi taxonomy identifier": "NCBITAXON:",
    "ncbi species identifier": "NCBITAXON:",
}


def read_bioc_json(path: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the documents of BioC JSON: a document, a collection, a list of these, or one of these per line.

    `{"PubTator3": [...]}` is a collection.

    Raises:
        InputError: the file is not BioC JSON, an offset is outside the text, or too many mentions differ from the text.
    """
    own = ReadReport()
    for where, value in json_values(path):
        for number, item in enumerate(_documents(value)):
            here = f"{where}: document {number + 1}"
            yield _document(checked(_Document, item, here), here, own)
    report.merge(own)
    check_offsets(path, own)


def read_bioc_xml(path: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the documents of BioC XML, whose offsets count from the start of the document.

    Raises:
        InputError: the file is not BioC XML, an offset is outside the text, or too many mentions differ from the text.
    """
    own = ReadReport()
    for element in elements(path, own.counts, "document"):
        where = f"{path}:{element.sourceline}"
        yield _document(checked(_Document, _as_json(element, where), where), where, own)
    report.merge(own)
    check_offsets(path, own)


def _documents(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _documents(item)
        return
    keys = ("PubTator3", "documents") if isinstance(value, dict) else ()
    inner = next((value[key] for key in keys if isinstance(value.get(key), list)), None)
    if inner is None:
        yield value
    else:
        yield from inner


def _document(source: _Document, where: str, report: ReadReport) -> Document:
    """Return the passages joined by spaces as one document, with the offsets of their mentions shifted."""
    text = ""
    mentions: list[Mention] = []
    for part in (part for passage in source.passages for part in _parts(passage)):
        if not part.text:
            if part.annotations:
                raise InputError(f"{where}: a passage has annotations but no text; export the file with its text")
            report.count("passages_without_text")
            continue
        start = len(text) + 1 if text else 0
        text = f"{text} {part.text}" if text else part.text
        for annotation in part.annotations:
            found = _mentions(annotation, start - part.offset, text)
            mentions += checked_mentions(text, found, where, report)
    report.count("documents")
    return Document(str(source.id), text, tuple(mentions))


def _parts(passage: _Passage) -> list[_Sentence]:
    """Return the parts of a passage that have text: the passage itself, or its sentences if the text is theirs.

    Each annotation belongs to the part in which it begins.
    """
    annotations = [*passage.annotations, *(each for sentence in passage.sentences for each in sentence.annotations)]
    if passage.text or not passage.sentences:
        return [_Sentence(offset=passage.offset, text=passage.text, annotations=annotations)]
    sentences = sorted(passage.sentences, key=lambda sentence: sentence.offset)
    parts = [_Sentence(offset=sentence.offset, text=sentence.text) for sentence in sentences]
    offsets = [part.offset for part in parts]
    for annotation in annotations:
        begin = min((location.offset for location in annotation.locations), default=offsets[0])
        parts[max(bisect_right(offsets, begin) - 1, 0)].annotations.append(annotation)
    return parts


def _mentions(annotation: _Annotation, shift: int, text: str) -> Iterator[Mention]:
    """Yield a mention for each location; only an annotation with a single location keeps its own string."""
    ids = _identifiers(annotation.infons)
    entity_type = str(annotation.infons.get("type") or "")
    for location in annotation.locations:
        start = location.offset + shift
        end = start + location.length
        single = annotation.text is not None and len(annotation.locations) == 1
        string = str(annotation.text) if single else text[max(start, 0) : max(end, 0)]
        yield Mention(start, end, string, entity_type, ids)


def _identifiers(infons: dict[str, Any]) -> tuple[str, ...]:
    """Return the identifiers under the first known key that has any, with the prefix of their vocabulary."""
    values = {key.lower(): str(value) for key, value in infons.items() if value is not None}
    for key, prefix in _IDENTIFIER_KEYS.items():
        ids = split_ids(values.get(key, ""))
        if ids:
            return tuple(each if ":" in each else f"{prefix}{each}" for each in ids)
    return ()


def _as_json(element: etree._Element, where: str) -> dict[str, Any]:
    def infons(parent: etree._Element) -> dict[str, str]:
        return {infon.get("key", ""): infon.text or "" for infon in parent.iterfind("infon")}

    def annotation(parent: etree._Element) -> dict[str, Any]:
        locations = [dict(location.attrib) for location in parent.iterfind("location")]
        return {"infons": infons(parent), "text": parent.findtext("text"), "locations": locations}

    def passage(parent: etree._Element) -> dict[str, Any]:
        found = [annotation(child) for child in parent.iterfind("annotation")]
        offset = parent.findtext("offset")
        sentences = [passage(child) for child in parent.iterfind("sentence")]
        return {
            "offset": offset if offset is not None else 0,
            "text": parent.findtext("text"),
            "annotations": found,
            "sentences": sentences,
        }

    name = element.findtext("id")
    if name is None:
        raise InputError(f"{where}: a document without id; is this BioC XML?")
    return {"id": name, "passages": [passage(child) for child in element.iterfind("passage")]}
