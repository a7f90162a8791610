"""Readers of BioC: XML as in PubTator Central and JSON as in PubTator 3."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lxml import etree
from pydantic import BaseModel

from bali_ds.corpus.document import Document, Mention, ReadReport, check_mention, check_offsets
from bali_ds.corpus.json_values import checked, json_values
from bali_ds.corpus.pubtator import split_ids
from bali_ds.corpus.xml_elements import elements
from bali_ds.errors import InputError


class _Location(BaseModel):
    offset: int
    length: int


class _Annotation(BaseModel):
    infons: dict[str, Any] = {}
    text: str | None = None
    locations: list[_Location] = []


class _Passage(BaseModel):
    offset: int = 0
    text: str | None = None
    annotations: list[_Annotation] = []


class _Document(BaseModel):
    id: str | int
    passages: list[_Passage]


def read_bioc_json(path: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the documents of BioC JSON: a document, a collection, `{"PubTator3": [...]}`, or one of these per line.

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
    for element in elements(path, "document"):
        where = f"{path}:{element.sourceline}"
        yield _document(checked(_Document, _as_json(element, where), where), where, own)
    report.merge(own)
    check_offsets(path, own)


def _documents(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        for key in ("PubTator3", "documents"):
            if isinstance(value.get(key), list):
                return value[key]
        return [value]
    return value if isinstance(value, list) else [value]


def _document(source: _Document, where: str, report: ReadReport) -> Document:
    """Return the passages joined by spaces as one document, with the offsets of their mentions shifted."""
    text = ""
    mentions = []
    for passage in source.passages:
        if not passage.text:
            if passage.annotations:
                raise InputError(f"{where}: a passage has annotations but no text; export the file with its text")
            continue
        start = len(text) + 1 if text else 0
        text = f"{text} {passage.text}" if text else passage.text
        for annotation in passage.annotations:
            for mention in _mentions(annotation, start - passage.offset, text):
                check_mention(text, mention, where, report)
                mentions.append(mention)
    report.count("documents")
    return Document(str(source.id), text, tuple(mentions))


def _mentions(annotation: _Annotation, shift: int, text: str) -> Iterator[Mention]:
    """Yield a mention for each location; only an annotation with a single location keeps its own string."""
    ids = split_ids(_identifier(annotation.infons))
    entity_type = str(annotation.infons.get("type") or "")
    for location in annotation.locations:
        start = location.offset + shift
        end = start + location.length
        single = annotation.text is not None and len(annotation.locations) == 1
        string = str(annotation.text) if single else text[max(start, 0) : max(end, 0)]
        yield Mention(start, end, string, entity_type, ids)


def _identifier(infons: dict[str, Any]) -> str:
    if infons.get("identifier") not in (None, ""):
        return str(infons["identifier"])
    if infons.get("MESH"):
        return f"MESH:{infons['MESH']}"
    return ""


def _as_json(element: etree._Element, where: str) -> dict[str, Any]:
    def infons(parent: etree._Element) -> dict[str, str]:
        return {infon.get("key", ""): infon.text or "" for infon in parent.iterfind("infon")}

    def annotation(parent: etree._Element) -> dict[str, Any]:
        locations = [dict(location.attrib) for location in parent.iterfind("location")]
        return {"infons": infons(parent), "text": parent.findtext("text"), "locations": locations}

    def passage(parent: etree._Element) -> dict[str, Any]:
        found = [annotation(child) for child in parent.iterfind("annotation")]
        offset = parent.findtext("offset")
        return {"offset": offset if offset is not None else 0, "text": parent.findtext("text"), "annotations": found}

    name = element.findtext("id")
    if name is None:
        raise InputError(f"{where}: a document without id; is this BioC XML?")
    return {"id": name, "passages": [passage(child) for child in element.iterfind("passage")]}
