"""Streaming XML that resolves nothing: no external DTD, no entity, no network."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from bali_ds.errors import InputError, first_line


def elements(path: Path, *tags: str) -> Iterator[etree._Element]:
    """Yield the elements of these names as they end, plain or gzip-compressed file alike, in bounded memory.

    An element is emptied once the next one is asked for.

    Raises:
        InputError: the file cannot be read, is no well-formed XML, or defines entities.
    """
    checked = False
    try:
        with open(path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if compressed else raw
            events = etree.iterparse(
                stream, events=("end",), tag=tags, resolve_entities=False, load_dtd=False, no_network=True
            )
            for _, element in events:
                if not checked:
                    _refuse_entities(path, element)
                    checked = True
                yield element
                _forget(element)
    except etree.XMLSyntaxError as error:
        raise InputError(
            f"{path}:{error.lineno or 0}: is no well-formed XML: {first_line(error, error.msg)}"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: compressed data end or break; fetch the file again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def plain_text(element: etree._Element | None) -> str:
    """Return the text of an element without its markup, runs of white space as one space."""
    return "" if element is None else " ".join("".join(element.itertext()).split())


def _refuse_entities(path: Path, element: etree._Element) -> None:
    subset = element.getroottree().docinfo.internalDTD
    if subset is not None and next(iter(subset.iterentities()), None) is not None:
        raise InputError(f"{path}: defines XML entities, which are never resolved; remove them from its DOCTYPE")


def _forget(element: etree._Element) -> None:
    element.clear()
    parent = element.getparent()
    while parent is not None and element.getprevious() is not None:
        del parent[0]
