"""Resumable download of open graphs from their official addresses."""

import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field

from bali_ds.errors import InputError, system_error
from bali_ds.files import read_json, resolved, sha256_file, write_json
from bali_ds.parsing import validated

_BLOCK = 2**20
_TIMEOUT_S = 60
_PROTOCOLS = ("http", "https", "ftp")
_ONE_LINE = r"^[ -~]+$"
# a ValueError: a host name that cannot be encoded, an answer that is not HTTP
_FAILED_DOWNLOADS = (
    urllib.error.URLError, TimeoutError, ConnectionError, EOFError, http.client.HTTPException, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class OpenGraph:
    """Address and license of an open graph; `reader` is the option of `graph build` that reads it."""

    address: str
    license: str
    reader: str


OPEN_GRAPHS = {
    "hpo": OpenGraph("https://purl.obolibrary.org/obo/hp.obo", "HPO license, attribution", "--obo"),
    "mondo": OpenGraph("https://purl.obolibrary.org/obo/mondo.obo", "CC BY 4.0", "--obo"),
    "doid": OpenGraph("https://purl.obolibrary.org/obo/doid.obo", "CC0 1.0", "--obo"),
    "go": OpenGraph("https://purl.obolibrary.org/obo/go.obo", "CC BY 4.0", "--obo"),
    "cl": OpenGraph("https://purl.obolibrary.org/obo/cl.obo", "CC BY 4.0", "--obo"),
    "uberon": OpenGraph("https://purl.obolibrary.org/obo/uberon.obo", "CC BY 3.0", "--obo"),
    "chebi": OpenGraph("https://purl.obolibrary.org/obo/chebi.obo", "CC BY 4.0", "--obo"),
    "mesh": OpenGraph(
        "https://nlmpubs.nlm.nih.gov/projects/mesh/MESH_FILES/xmlmesh/desc2026.gz", "NLM terms of use", "--mesh"
    ),
    "primekg": OpenGraph(
        "https://dataverse.harvard.edu/api/access/datafile/6180620", "CC0 1.0", "--tsv-preset primekg --edges"
    ),
}


def fetch(address: str, target: Path, sha256: str | None = None) -> str:
    """Download a file and return its SHA-256.

    An interrupted download stays beside the target as NAME.part. The next call resumes it if the server still has the
    same version (ETag or Last-Modified) and supports range requests; otherwise it starts over.

    Raises:
        InputError: the address cannot be reached, the download is interrupted, or the file has another SHA-256.
    """
    _check_address(address)
    target = resolved(target)
    part, note = (target.with_name(f"{target.name}.{suffix}") for suffix in ("part", "part.json"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if part.exists() and not note.exists():
            raise InputError(f"{part}: is not a partial download by bali-ds; move it away")
        _download(address, part, note)
    except InputError:
        raise
    except _FAILED_DOWNLOADS as error:
        raise InputError(
            f"{address}: cannot be downloaded: {getattr(error, 'reason', error)}; run the command again to resume"
        ) from error
    except OSError as error:
        raise InputError(f"{part}: cannot be written: {system_error(error)}") from error
    found = sha256_file(part)
    if sha256 and found != sha256.lower():
        part.unlink()
        note.unlink(missing_ok=True)
        raise InputError(f"{address}: has SHA-256 {found}, expected {sha256}; the download was deleted")
    part.replace(target)
    note.unlink(missing_ok=True)
    return found


class _Note(BaseModel):
    """Version of a partial download, as the server named it: an ETag or a date, one printable line."""

    version: str | None = Field(pattern=_ONE_LINE)


def _check_address(address: str) -> None:
    try:
        parts = urllib.parse.urlsplit(address)
        plain = parts.scheme in _PROTOCOLS and parts.hostname and parts.port != 0 and " " not in address
    except ValueError:  # an invalid IPv6 address or port
        plain = False
    if not plain or not address.isascii() or not address.isprintable():
        raise InputError(f"{address}: is not a plain {', '.join(_PROTOCOLS[:-1])} or {_PROTOCOLS[-1]} address")


def _download(address: str, part: Path, note: Path) -> None:
    request = urllib.request.Request(address, headers={"User-Agent": "bali-ds"})
    start = part.stat().st_size if part.exists() else 0
    version = validated(_Note, read_json(note), str(note), "remove it").version if start and note.exists() else None
    if version:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", version)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{start}":
            return
        raise
    with response:
        resumed = response.status == 206
        named = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        write_json(note, {"version": named if re.fullmatch(_ONE_LINE, named) else None})
        expected = response.headers.get("Content-Length", "")
        received = 0
        with open(part, "ab" if resumed else "wb") as stream:
            while block := response.read(_BLOCK):
                stream.write(block)
                received += len(block)
    if re.fullmatch("[0-9]{1,18}", expected) and received != int(expected):
        raise EOFError(f"the connection closed after {received:,} of {int(expected):,} bytes")
