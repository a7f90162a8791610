"""Readers of JSON with character spans: BERN2 responses, scispaCy entities, plain texts and spans."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, model_validator

from bali_ds.corpus.document import Document, Mention, ReadReport, check_offsets, checked_mentions
from bali_ds.corpus.json_values import checked, json_values
from bali_ds.corpus.pubtator import split_ids
from bali_ds.errors import InputError


class _Span(BaseModel):
    begin: int
    end: int


class _Annotation(BaseModel):
    id: list[str] = []
    mention: str | None = None
    obj: str = ""
    span: _Span


class _Bern(BaseModel):
    pmid: str | int | None = None
    error: Any = Field(None, validation_alias=AliasChoices("error_message", "error"))
    text: str | None = None
    annotations: list[_Annotation] = []


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [] if value is None else [value]


_Identifiers = Annotated[list[str | int], BeforeValidator(_as_list)]


class _Mention(BaseModel):
    start: int = Field(validation_alias=AliasChoices("start", "start_char", "start_offset", "begin"))
    end: int = Field(validation_alias=AliasChoices("end", "end_char", "end_offset"))
    text: str | None = None
    type: str = Field("", validation_alias=AliasChoices("type", "label"))
    ids: _Identifiers = []
    id: _Identifiers = []
    cui: _Identifiers = []
    kb_id: _Identifiers = []
    kb_ents: list[tuple[str, float]] = []

    @model_validator(mode="before")
    @classmethod
    def _from_triple(cls, value: Any) -> Any:
        """Read doccano's [start, end, label], whose label is an identifier if it links anything."""
        if isinstance(value, list) and len(value) == 3:
            return {"start": value[0], "end": value[1], "type": value[2], "id": value[2]}
        return value

    def identifiers(self) -> tuple[str, ...]:
        """Return all identifiers, and of scored candidates (kb_ents) the best one."""
        best = [max(self.kb_ents, key=lambda candidate: candidate[1])[0]] if self.kb_ents else []
        return split_ids(";".join(map(str, [*self.ids, *self.id, *self.cui, *self.kb_id, *best])))


class _Text(BaseModel):
    id: str | int = Field(validation_alias=AliasChoices("id", "pmid", "_id"))
    text: str | None = None
    title: str = ""
    abstract: str = ""
    mentions: list[_Mention] = Field([], validation_alias=AliasChoices("mentions", "ents", "spans", "entities"))

    @model_validator(mode="before")
    @classmethod
    def _from_doccano(cls, value: Any) -> Any:
        """Take the triples of doccano's `label` as mentions; a label of the whole text is not one."""
        label = value.get("label") if isinstance(value, dict) else None
        is_triples = isinstance(label, list) and any(isinstance(each, list) for each in label)
        return {"mentions": label, **value} if is_triples else value


def read_bern2(path: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the documents of BERN2 JSON: a response, a list of responses, or one per line.

    The id of a response without `pmid` is the name of the file and the number of the response. A response that reports
    an error is counted and skipped.

    Raises:
        InputError: the file is not BERN2 JSON, a span is outside the text, or too many mentions differ from the text.
    """
    own = ReadReport()
    number = 0
    for where, value in json_values(path):
        for item in value if isinstance(value, list) else [value]:
            number += 1
            here = f"{where}: response {number}"
            source = checked(_Bern, item, here)
            if source.error and not source.text:
                own.remark("responses_with_an_error", here)
                continue
            if source.text is None:
                raise InputError(f"{here}: key text: is missing; is this a response of BERN2?")
            mentions = [
                _mention(source.text, a.span.begin, a.span.end, a.mention, a.obj, a.id) for a in source.annotations
            ]
            name = f"{path.name.split('.')[0]}_{number}" if source.pmid is None else str(source.pmid)
            yield _document(name, source.text, mentions, here, own)
    report.merge(own)
    check_offsets(path, own)


def read_jsonl(path: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the documents of JSON lines with `id` (or `pmid`), `text` (or `title` and `abstract`) and `mentions`.

    A mention (key `mentions`, `spans`, `ents` or `entities`) has `start` and `end` in code points and optionally
    `text`, `type` (or `label`), and identifiers: `ids`, `id`, `cui`, spaCy's `kb_id`, each one value or a list, or
    scispaCy's scored candidates `kb_ents`, of which the best is used. Doccano's triples are read too (key `label`).

    Raises:
        InputError: a line is malformed, a span is outside the text, or too many mentions differ from the text.
    """
    own = ReadReport()
    for where, value in json_values(path):
        for item in value if isinstance(value, list) else [value]:
            source = checked(_Text, item, where)
            text = source.text if source.text is not None else f"{source.title} {source.abstract}".strip()
            if not text and source.mentions:
                raise InputError(f"{where}: mentions without text; add text, or title and abstract")
            mentions = [_mention(text, m.start, m.end, m.text, m.type, m.identifiers()) for m in source.mentions]
            yield _document(str(source.id), text, mentions, where, own)
    report.merge(own)
    check_offsets(path, own)


def _mention(text: str, start: int, end: int, string: str | None, entity_type: str, ids: Iterable[str]) -> Mention:
    """Return a mention; one without a string of its own takes that of the text."""
    string = text[max(start, 0) : max(end, 0)] if string is None else string
    return Mention(start, end, string, entity_type, split_ids(";".join(ids)))


def _document(name: str, text: str, mentions: list[Mention], where: str, report: ReadReport) -> Document:
    kept = checked_mentions(text, mentions, where, report)
    report.count("documents")
    return Document(name, text, tuple(kept))
