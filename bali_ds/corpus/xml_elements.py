"""Streaming XML parser that resolves no entities and loads neither external DTDs nor network resources."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from bali_ds.errors import InputError, first_line


def elements(path: Path, *tags: str) -> Iterator[etree._Element]:
    """Yield the elements with these tags of a plain or gzip-compressed file, in bounded memory.

    An element is cleared when the next one is requested.

    Raises:
        InputError: the file cannot be read, is not well-formed XML, or defines entities.
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
                _clear(element)
    except etree.XMLSyntaxError as error:
        raise InputError(
            f"{path}:{error.lineno or 0}: is not well-formed XML: {first_line(error, error.msg)}"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: the compressed data is truncated or damaged; download the file again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def plain_text(element: etree._Element | None) -> str:
    """Return the text of an element without its markup, runs of white space as one space."""
    return "" if element is None else " ".join("".join(element.itertext()).split())


def _refuse_entities(path: Path, element: etree._Element) -> None:
    subset = element.getroottree().docinfo.internalDTD
    if subset is not None and next(iter(subset.iterentities()), None) is not None:
        raise InputError(f"{path}: defines XML entities, which are not supported; remove them from its DOCTYPE")


def _clear(element: etree._Element) -> None:
    element.clear()
    parent = element.getparent()
    while parent is not None and element.getprevious() is not None:
        del parent[0]
