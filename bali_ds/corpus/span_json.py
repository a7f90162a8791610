"""Readers of JSON with character spans: BERN2 responses, scispaCy entities, plain texts and spans."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import AliasChoices, BaseModel, Field

from bali_ds.corpus.document import Document, Mention, ReadReport, check_mention, check_offsets
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
    text: str
    annotations: list[_Annotation] = []


class _Mention(BaseModel):
    start: int
    end: int
    text: str | None = None
    type: str = Field("", validation_alias=AliasChoices("type", "label"))
    ids: list[str] = []
    id: str | None = Field(None, validation_alias=AliasChoices("id", "cui"))
    kb_ents: list[tuple[str, float]] = []

    def identifiers(self) -> tuple[str, ...]:
        """Return all identifiers, and of scored candidates (kb_ents) the best one."""
        best = [max(self.kb_ents, key=lambda candidate: candidate[1])[0]] if self.kb_ents else []
        return split_ids(";".join([*self.ids, *([self.id] if self.id else []), *best]))


class _Text(BaseModel):
    id: str | int = Field(validation_alias=AliasChoices("id", "pmid", "_id"))
    text: str | None = None
    title: str = ""
    abstract: str = ""
    mentions: list[_Mention] = Field([], validation_alias=AliasChoices("mentions", "ents", "spans", "entities"))


def read_bern2(path: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the documents of BERN2 JSON: a response, a list of responses, or one per line.

    The id of a response without `pmid` is the name of the file and the number of the response.

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
            mentions = []
            for a in source.annotations:
                start, end = a.span.begin, a.span.end
                string = source.text[max(start, 0) : max(end, 0)] if a.mention is None else a.mention
                mentions.append(Mention(start, end, string, a.obj, split_ids(";".join(a.id))))
            name = f"{path.name.split('.')[0]}_{number}" if source.pmid is None else str(source.pmid)
            yield _document(name, source.text, mentions, here, own)
    report.merge(own)
    check_offsets(path, own)


def read_jsonl(path: Path, report: ReadReport) -> Iterator[Document]:
    """Yield the documents of JSON lines with `id` (or `pmid`), `text` (or `title` and `abstract`) and `mentions`.

    A mention (key `mentions`, `spans`, `ents` or `entities`) has `start` and `end` in code points and optionally
    `text`, `type` (or `label`), and `ids`, `id`, `cui` or scispaCy's scored candidates `kb_ents`, of which the best is
    used.

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
            mentions = [
                Mention(
                    m.start,
                    m.end,
                    text[max(m.start, 0) : max(m.end, 0)] if m.text is None else m.text,
                    m.type,
                    m.identifiers(),
                )
                for m in source.mentions
            ]
            yield _document(str(source.id), text, mentions, where, own)
    report.merge(own)
    check_offsets(path, own)


def _document(name: str, text: str, mentions: list[Mention], where: str, report: ReadReport) -> Document:
    for mention in mentions:
        check_mention(text, mention, where, report)
    report.count("documents")
    return Document(name, text, tuple(mentions))
