"""The manifest of a graph: its columns, their dtypes, lengths and digests, and the fingerprint of the whole."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from bali_ds.directories import Output
from bali_ds.errors import InputError
from bali_ds.files import read_json

FORMAT_VERSION = 2

# Every column and a regular expression of its dtypes.
_OFFSETS, _TEXT_OFFSETS, _IDENTIFIERS = "<i8", "<u4|<i8", r"\|S([1-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])"
COLUMNS = {
    "concepts.cuis": _IDENTIFIERS,
    "concepts.names": _OFFSETS,
    "names.text": r"\|u1",
    "names.offsets": _TEXT_OFFSETS,
    "edges.offsets": "<u4|<i8",
    "edges.entries": "<u8",
    "kinds.relations": "<u2",
    "kinds.sources": r"\|u1|<u2",
    "concepts.types": _OFFSETS,
    "types": "<u2",
    "concepts.definitions": _OFFSETS,
    "definitions.text": r"\|u1",
    "definitions.offsets": _TEXT_OFFSETS,
    "codes.sources": "<u2",
    "codes.text": r"\|u1",
    "codes.offsets": _TEXT_OFFSETS,
    "codes.concepts": "<i4",
    "retired.cuis": _IDENTIFIERS,
    "retired.concepts": "<i4",
}
_LISTS = ("relations", "inverse_relations", "sources", "semantic_types", "code_sources")
_FINGERPRINTED_LISTS = ("relations", "inverse_relations", "sources")
_FINGERPRINTED_COLUMNS = tuple(COLUMNS)[:8]
_LARGEST = 64 * 2**20
_STEMS = sorted({name.partition(".")[0] for name in COLUMNS})
GRAPH = Output(
    "a graph",
    "manifest.json",
    ("columns", "fingerprint"),
    (*(f"{stem}.npy" for stem in _STEMS), *(f"{stem}.*.npy" for stem in _STEMS)),
)


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with its format version, fingerprint and checksum."""
    content = {**content, "format_version": FORMAT_VERSION}
    content["fingerprint"] = _fingerprint(content)
    return {**content, "checksum": checksum(content)}


def checksum(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its own checksum; it covers the digests of all columns."""
    return _digest({key: value for key, value in manifest.items() if key != "checksum"})


def _fingerprint(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of what training reads: identifiers, names and facts.

    Semantic types, codes, definitions and retired identifiers are not covered, so that two releases of one graph have
    the same fingerprint even if only one of them has this metadata.
    """
    content: dict[str, Any] = {key: manifest[key] for key in ("format_version", *_FINGERPRINTED_LISTS)}
    content["columns"] = {name: manifest["columns"][name] for name in _FINGERPRINTED_COLUMNS}
    return _digest(content)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of the graph at `path`, every field checked.

    Raises:
        InputError: it is missing, of another format version, or damaged.
    """
    file = path / "manifest.json"
    if not file.is_file():
        raise InputError(f"{path}: is not a graph (manifest.json is missing); build one with bali-ds graph build")
    if file.stat().st_size > _LARGEST:
        raise InputError(f"{file}: is too large for a manifest; build the graph again")
    manifest = read_json(file)
    if not isinstance(manifest, dict) or "format_version" not in manifest:
        raise InputError(f"{file}: is not the manifest of a graph; build the graph again")
    if manifest["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{file}: has format version {str(manifest['format_version'])[:20]}, this program reads {FORMAT_VERSION}; "
            "build the graph again"
        )
    if manifest.get("checksum") != checksum(manifest):
        raise InputError(f"{file}: does not match its checksum; build the graph again")
    invalid = _invalid_field(manifest)
    if invalid:
        raise InputError(f"{file}: the field {invalid} is missing or invalid; build the graph again")
    return manifest


def _invalid_field(manifest: dict[str, Any]) -> str | None:
    for name in _LISTS:
        value = manifest.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return name
    columns = manifest.get("columns")
    if not isinstance(columns, dict) or columns.keys() != COLUMNS.keys():
        return "columns"
    for name, entry in columns.items():
        dtype, length, digest = (entry.get(key) for key in ("dtype", "length", "sha256"))
        if not isinstance(dtype, str) or not re.fullmatch(COLUMNS[name], dtype):
            return f"dtype of {name}"
        if type(length) is not int or not 0 <= length < 2**48 or not isinstance(digest, str):
            return f"length or digest of {name}"
    if len(manifest["relations"]) != len(manifest["inverse_relations"]):
        return "inverse_relations"
    return None if manifest.get("fingerprint") == _fingerprint(manifest) else "fingerprint"
