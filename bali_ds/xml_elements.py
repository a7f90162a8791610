"""Streaming XML parser that resolves named characters and loads neither external DTDs nor network resources."""

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator
from html.entities import html5
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bali_ds.bounded_reader import BoundedReader
from bali_ds.errors import InputError, first_line, system_error
from bali_ds.files import open_regular

if TYPE_CHECKING:
    from lxml import etree


LARGEST_ELEMENT = 1 << 26
"""Bytes, decompressed, that an element and what precedes it may have; the parser keeps them in memory."""


def elements(path: Path, counts: "Counter[str]", *tags: str) -> "Iterator[etree._Element]":
    """Yield the elements with these tags of a plain or gzip-compressed file, in bounded memory.

    Tags are compared and yielded without namespaces; comments and processing instructions are removed. A reference to a
    character by its name (`&alpha;`), which the external DTD of a file defines, is replaced by the character that has
    this name in HTML. An unknown name stays in the text and is counted. An element is cleared when the next one is
    requested.

    Raises:
        InputError: the file cannot be read, is not well-formed XML, defines entities, or has more than 64 MiB without
            the end of such an element.
    """
    from lxml import etree

    checked = False
    try:
        with open_regular(path) as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            source = gzip.GzipFile(fileobj=raw) if compressed else raw
            stream = BoundedReader(path, source, LARGEST_ELEMENT, "without a document")
            events = etree.iterparse(
                stream, events=("end",), tag=[f"{{*}}{tag}" for tag in tags], resolve_entities=False, load_dtd=False,
                no_network=True, remove_comments=True, remove_pis=True,
            )  # fmt: skip
            for _, element in events:
                stream.restart()
                if not checked:
                    _refuse_entities(path, element)
                    checked = True
                _simplify(element, counts)
                yield element
                _clear(element)
    except etree.XMLSyntaxError as error:
        raise InputError(
            f"{path}:{error.lineno or 0}: is not well-formed XML: {first_line(error, error.msg)}"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: the compressed data is truncated or damaged; download the file again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {system_error(error)}") from error


def plain_text(element: "etree._Element | None") -> str:
    """Return the text of an element without its markup, runs of white space as one space."""
    return "" if element is None else " ".join("".join(element.itertext()).split())


def _refuse_entities(path: Path, element: "etree._Element") -> None:
    subset = element.getroottree().docinfo.internalDTD
    if subset is not None and next(iter(subset.iterentities()), None) is not None:
        raise InputError(f"{path}: defines XML entities, which are not supported; remove them from its DOCTYPE")


def _simplify(element: "etree._Element", counts: "Counter[str]") -> None:
    """Remove namespaces from tags, and replace references to entities by their characters."""
    from lxml import etree

    references = []
    for node in element.iter():
        if node.tag is etree.Entity:
            references.append(node)
        elif node.tag[0] == "{":
            node.tag = etree.QName(node).localname
    for node in references:
        character = html5.get(f"{node.name};")
        if character is None:
            counts["unknown_entities"] += 1
        _replace_by_text(node, f"&{node.name};" if character is None else character)


def _replace_by_text(node: Any, text: str) -> None:
    parent, previous = node.getparent(), node.getprevious()
    text += node.tail or ""
    node.tail = None
    if previous is None:
        parent.text = (parent.text or "") + text
    else:
        previous.tail = (previous.tail or "") + text
    parent.remove(node)


def _clear(element: "etree._Element") -> None:
    element.clear()
    parent = element.getparent()
    while parent is not None and element.getprevious() is not None:
        del parent[0]
