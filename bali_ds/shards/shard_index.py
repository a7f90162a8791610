"""The index of a shard set, `index.json`: how it is read, and what it may name.

Its schema is imported where it is used: loader workers import this module, and start sooner without pydantic.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bali_ds.errors import InputError
from bali_ds.files import read_json
from bali_ds.parsing import quoted, validated
from bali_ds.shards.layout import FORMAT_VERSION, SAMPLE_DTYPE, token_dtype

SPLITS = ("train", "validation")
TABLES = ("samples.npy", "names.tokens.npy", "names.offsets.npy")
REBUILD = "rebuild it: bali-ds shards index"
# Names become paths, URLs and arguments of a user's command, perhaps in a shell behind ssh: no special characters.
_TAR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST_INDEX, _MOST_VALUES = 64 << 20, 5_000_000


def read_index(path: Path, origin: str | None = None) -> dict[str, Any]:
    """Return index.json of a directory of shards, every value checked that this program reads.

    Args:
        path: the directory.
        origin: the name of the index in messages; its path by default.

    Raises:
        InputError: it is missing, not JSON, of another version, lacks a key, has a value of another type or out of
            range, or lists a file of another name.
    """
    from bali_ds.shards.index_schema import IndexSchema

    index = read_json(path / "index.json", limit=_LARGEST_INDEX, most_values=_MOST_VALUES)
    file = origin or str(path / "index.json")
    if not isinstance(index, dict) or index.get("format_version") != FORMAT_VERSION:
        found = index.get("format_version") if isinstance(index, dict) else None
        raise InputError(
            f"{file}: format version {quoted(found)}, this program reads {FORMAT_VERSION}; build the shards again"
        )
    _check_names(file, index)
    validated(IndexSchema, index, file, REBUILD)
    if [shard["split"] for shard in index["shards"]] != sorted(shard["split"] for shard in index["shards"]):
        raise InputError(f"{file}: train shards must come before validation shards; {REBUILD}")
    return index


def check_description(description: Any, where: str) -> None:
    """Check the description of a shard set in a tar, from which the index is rebuilt.

    Raises:
        InputError: it lacks a key, or has a value of another type or out of range.
    """
    from bali_ds.shards.index_schema import DescriptionSchema

    validated(DescriptionSchema, description, where, "copy or build the shard again")


def check_counts(report: Any, where: str) -> dict[str, int]:
    """Return the counts in the report of a build.

    Raises:
        InputError: the report has none, or one that is not a count.
    """
    from bali_ds.shards.index_schema import ReportSchema

    return validated(ReportSchema, report, where, "remove it").counts


def index_fingerprint(index: Mapping[str, Any]) -> str:
    """Return the SHA-256 over description, every tar's hash, sample table and names, as the index lists them."""
    description = {
        key: value for key, value in index.items() if key not in ("counts", "shards", "tables", "fingerprint")
    }
    content = json.dumps([description, index["shards"], index.get("tables", {})], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def largest_tables(index: Mapping[str, Any]) -> dict[str, int]:
    """Return the largest size in bytes of each table of a shard set with this index."""
    header, names = 1 << 12, index["graph"]["names"]
    samples = sum(shard["samples"] for shard in index["shards"])
    return {
        "samples.npy": header + SAMPLE_DTYPE.itemsize * samples,
        "names.tokens.npy": header
        + token_dtype(index["tokenizer"]["vocab_size"]).itemsize * names * index["max_name_tokens"],
        "names.offsets.npy": header + 8 * (names + 1),
    }


def _check_names(file: str, index: dict[str, Any]) -> None:
    """Refuse an index that lists other files than the known tables and plain tars, before any file is opened."""
    for key in ("fingerprint", "graph_fingerprint"):
        if not isinstance(index.get(key), str) or not _SHA256.fullmatch(index[key]):
            raise InputError(f"{file}: {key} {quoted(index.get(key))} is not a SHA-256; {REBUILD}")
    tables = index.get("tables", {})
    if not isinstance(tables, dict):
        raise InputError(f"{file}: key 'tables' is not a mapping; {REBUILD}")
    for name, digest in tables.items():
        if name not in TABLES:
            raise InputError(f"{file}: table {quoted(name)} is unknown; a shard set has {', '.join(TABLES)}")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise InputError(f"{file}: table {name!r}: {quoted(digest)} is not a SHA-256; {REBUILD}")
    seen = set()
    entries = index.get("shards")
    for entry in entries if isinstance(entries, list) else ():
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _TAR_NAME.fullmatch(name):
            raise InputError(f"{file}: shard name {quoted(name)} is not a plain file name that ends in .tar")
        if name in seen:
            raise InputError(f"{file}: shard {name} is listed twice; {REBUILD}")
        seen.add(name)
