"""Readers of entity linking queries: TSV tables, BioSyn `.concept` files and annotated corpora."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bali_ds.corpus.corpus_files import corpus_documents
from bali_ds.corpus.readers import READERS
from bali_ds.errors import InputError
from bali_ds.files import nonempty_lines
from bali_ds.inference.concept_dictionary import split_identifiers

_PARTS = re.compile(r"[|+]")
FLAGS = ("in_dict_exact", "cui_seen_in_train", "pair_seen_in_train")


@dataclass(frozen=True)
class Queries:
    """Mentions with their gold concepts.

    Attributes:
        mentions: strings to link.
        gold: concept identifiers of each mention; a composite mention has several, and any of them counts.
        flags: bool [n] by column name, the flags that the file has for each mention.
        places: (text, start, end) of each mention in its document; empty if the file has no texts.
        parts: the strings of which each mention consists, as BioSyn's files join them by a bar; empty for other files.
    """

    mentions: Sequence[str]
    gold: Sequence[tuple[str, ...]]
    flags: dict[str, NDArray[np.bool_]]
    places: Sequence[tuple[str, int, int]] = ()
    parts: Sequence[tuple[str, ...]] = ()


def read_queries(source: str | Path) -> Queries:
    """Read mentions with gold concepts.

    Args:
        source: a TSV file with a header (columns `mention`, `cui` and any of `FLAGS`), a BioSyn `.concept` file or a
            directory of them, or a corpus as FORMAT:PATH (a file, a folder or a pattern), whose linked mentions are
            read with their texts.

    Raises:
        InputError: a column is missing, a row is malformed, or there are no rows.
    """
    form, colon, _ = str(source).partition(":")
    path = Path(source)
    if colon and form in READERS:
        queries = _read_corpus(str(source))
    elif path.is_dir() or path.suffix == ".concept":
        queries = _read_concepts(path)
    else:
        queries = _read_table(path)
    if not queries.mentions:
        raise InputError(f"{source}: holds no queries; check the file and its format")
    return queries


def _read_corpus(entry: str) -> Queries:
    """Read the linked mentions of a corpus."""
    found = [
        (mention, document.text) for document in corpus_documents(entry) for mention in document.mentions if mention.ids
    ]
    return Queries(
        mentions=[text[mention.start : mention.end] for mention, text in found],
        gold=[split_identifiers(";".join(mention.ids)) for mention, _ in found],
        flags={},
        places=[(text, mention.start, mention.end) for mention, text in found],
    )


def _read_table(path: Path) -> Queries:
    lines = nonempty_lines(path)
    header = next(lines, (0, ""))[1].split("\t")
    for column in ("mention", "cui"):
        if column not in header:
            raise InputError(f"{path}:1: column {column!r} is missing; the header has {', '.join(header)}")
    rows = []
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != len(header):
            raise InputError(f"{path}:{number}: has {len(fields)} columns, the header has {len(header)}")
        rows.append(fields)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(header, ())
    return Queries(
        mentions=list(columns["mention"]),
        gold=[split_identifiers(cui) for cui in columns["cui"]],
        flags={name: np.array(columns[name]) == "1" for name in FLAGS if name in columns},
    )


def _read_concepts(path: Path) -> Queries:
    """Read `document||start|end||type||mention||CUI` lines, as BioSyn's preprocessing writes them."""
    files = sorted(path.glob("*.concept")) if path.is_dir() else [path]
    mentions: list[str] = []
    gold: list[tuple[str, ...]] = []
    for file in files:
        for number, line in nonempty_lines(file):
            fields = line.split("||")
            if len(fields) != 5:
                raise InputError(f"{file}:{number}: expected document||start|end||type||mention||CUI")
            mentions.append(fields[3])
            gold.append(split_identifiers(fields[4]))
    return Queries(mentions, gold, {}, parts=[tuple(_PARTS.split(mention)) for mention in mentions])
