"""Dictionaries and queries of entity linking, in the layouts of the field."""

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.files import open_text

COMPOSITE = re.compile(r"[|+]")
FLAGS = ("in_dict_exact", "cui_seen_in_train", "pair_seen_in_train")


@dataclass(frozen=True)
class Dictionary:
    """Names and the concepts that bear them.

    Attributes:
        names: distinct strings, in the order of the file.
        cuis: distinct concept identifiers.
        offsets: int64 [names + 1]; name i belongs to `concepts[offsets[i]:offsets[i + 1]]`.
        concepts: int64, positions in `cuis`.
    """

    names: Sequence[str]
    cuis: Sequence[str]
    offsets: NDArray[np.int64]
    concepts: NDArray[np.int64]


@dataclass(frozen=True)
class Queries:
    """Mentions with their gold concepts.

    Attributes:
        mentions: the strings to link.
        gold: the concept identifiers of each; a composite has several and counts if any is found.
        flags: bool [n] by column name, what the file tells of each mention.
    """

    mentions: Sequence[str]
    gold: Sequence[tuple[str, ...]]
    flags: dict[str, NDArray[np.bool_]]


def read_dictionary(path: Path) -> Dictionary:
    """Read `CUI||name` lines, plain or gzip; a composite of CUIs is joined by | or +.

    Raises:
        InputError: a line has another form, or there is none.
    """
    of_name: dict[str, dict[int, None]] = {}
    of_cui: dict[str, int] = {}
    for number, line in _lines(path):
        identifiers, bars, name = line.partition("||")
        if not (bars and identifiers and name):
            raise InputError(f"{path}:{number}: expected CUI||name, found {line[:60]!r}")
        concepts = of_name.setdefault(name, {})
        for cui in COMPOSITE.split(identifiers):
            concepts[of_cui.setdefault(cui, len(of_cui))] = None
    if not of_name:
        raise InputError(f"{path}: holds no name")
    sizes = np.fromiter(map(len, of_name.values()), np.int64, len(of_name))
    return Dictionary(
        names=list(of_name),
        cuis=list(of_cui),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]),
        concepts=np.array([concept for concepts in of_name.values() for concept in concepts], np.int64),
    )


def read_queries(path: Path) -> Queries:
    """Read a TSV with a header (columns `mention`, `cui` and any flags), a BioSyn `.concept` file or a folder of them.

    Raises:
        InputError: a column is missing, a row has another form, or there is no row.
    """
    path = Path(path)
    queries = _read_concepts(path) if path.is_dir() or path.suffix == ".concept" else _read_table(path)
    if not queries.mentions:
        raise InputError(f"{path}: holds no query")
    return queries


def _read_table(path: Path) -> Queries:
    lines = _lines(path)
    header = next(lines, (0, ""))[1].split("\t")
    for column in ("mention", "cui"):
        if column not in header:
            raise InputError(f"{path}:1: the header lacks the column {column!r}; it has {', '.join(header)}")
    rows = []
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != len(header):
            raise InputError(f"{path}:{number}: has {len(fields)} columns, the header has {len(header)}")
        rows.append(fields)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(header, ())
    return Queries(
        mentions=list(columns["mention"]),
        gold=[tuple(COMPOSITE.split(cui)) for cui in columns["cui"]],
        flags={name: np.array(columns[name]) == "1" for name in FLAGS if name in columns},
    )


def _read_concepts(path: Path) -> Queries:
    """Read `document||start|end||type||mention||CUI` lines, the layout that BioSyn's pre-processing writes."""
    files = sorted(path.glob("*.concept")) if path.is_dir() else [path]
    mentions: list[str] = []
    gold: list[tuple[str, ...]] = []
    for file in files:
        for number, line in _lines(file):
            fields = line.split("||")
            if len(fields) != 5:
                raise InputError(f"{file}:{number}: expected document||start|end||type||mention||CUI")
            mentions.append(fields[3])
            gold.append(tuple(COMPOSITE.split(fields[4])))
    return Queries(mentions, gold, {})


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with open_text(path) as stream:
            for number, line in enumerate(stream, 1):
                if text := line.rstrip("\r\n"):
                    yield number, text
    except (UnicodeDecodeError, EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path}:{number + 1}: cannot be read as UTF-8 text or gzip: {error}") from error
