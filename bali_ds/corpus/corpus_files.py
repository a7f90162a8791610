"""Input files of a corpus, named one by one, by a pattern or by their folder."""

from collections.abc import Iterator
from glob import has_magic
from pathlib import Path

from bali_ds.corpus.document import Document, ReadReport
from bali_ds.corpus.readers import READERS, read_documents
from bali_ds.errors import InputError, suggestion

_XML, _JSON, _TEXT = (".xml", ".nxml"), (".json", ".jsonl"), (".txt", ".tsv", ".pubtator")
SUFFIXES = {
    "pubtator": _TEXT,
    "medline": _XML,
    "jats": _XML,
    "bioc-xml": _XML,
    "bioc-json": _JSON,
    "bern2": _JSON,
    "jsonl": _JSON,
}
"""Ends of the names of the files of each format in a folder, plain or followed by .gz."""


def corpus_files(entry: str) -> tuple[str, list[Path]]:
    """Return the format and the files of `FORMAT:PATH`, sorted by name.

    Args:
        entry: PATH is a file, a folder, whose files of this format are taken at any depth, or a pattern
            ("medline:baseline/*.xml.gz").

    Raises:
        InputError: the entry is not FORMAT:PATH, the format is unknown, or no file is found.
    """
    name, separator, text = entry.partition(":")
    if not separator or not text:
        raise InputError(f"{entry}: write FORMAT:PATH, for example pubtator:abstracts.txt.gz")
    if name not in READERS:
        raise InputError(f"{entry}: the format {name!r} is unknown; {suggestion(name, READERS)}")
    path = Path(text)
    if path.is_dir():
        found = [file for file in path.rglob("*") if _is_of_format(file, path, name)]
    elif has_magic(text) and not path.exists():
        base = Path(path.anchor)
        found = [file for file in base.glob(str(path.relative_to(base))) if file.is_file()]
    else:
        return name, [path]
    if not found:
        ends = ", ".join(SUFFIXES[name])
        raise InputError(f"{entry}: no file is there; a folder needs files that end in {ends}, or these and .gz")
    return name, sorted(found)


def corpus_documents(entry: str) -> Iterator[Document]:
    """Yield the documents of all files of `FORMAT:PATH`, see `corpus_files`; what is skipped is not counted."""
    name, paths = corpus_files(entry)
    return (document for path in paths for document in read_documents(name, path, ReadReport()))


def _is_of_format(file: Path, folder: Path, name: str) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.is_file() and not hidden and file.name.removesuffix(".gz").endswith(SUFFIXES[name])
