"""Samples: linked passages with the neighborhoods of their concepts, and their bytes in a shard."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.shards.layout import ARRAY_MEMBERS, META_MEMBER, npy_bytes, tar_member

_LONGEST_ID = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9_\-]")
_HASHED = re.compile(r"-[0-9a-f]{12}\Z")


@dataclass(frozen=True)
class Sample:
    """One stored passage.

    Attributes:
        key: the names of its members up to the first dot.
        tokens: uint16 or int32 [T], special tokens included.
        mentions: int32 [M, 3]: first token, one past the last token, concept id.
        edges: int32 [E, 3]: concept id, relation id, neighbor id, grouped by concept in order of first mention.
        meta: document id, passage number, range of code points.
    """

    key: str
    tokens: NDArray[Any]
    mentions: NDArray[np.int32]
    edges: NDArray[np.int32]
    meta: dict[str, Any]

    @property
    def num_views(self) -> int:
        """Number of distinct concepts in the passage."""
        return len(set(self.mentions[:, 2].tolist()))

    def to_bytes(self) -> bytes:
        """Return the tar members of the sample."""
        arrays = (self.tokens, self.mentions, self.edges)
        pairs = zip(ARRAY_MEMBERS, arrays, strict=True)
        parts = [tar_member(f"{self.key}.{name}", npy_bytes(array)) for name, array in pairs]
        meta = json.dumps(self.meta, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        return b"".join((*parts, tar_member(f"{self.key}.{META_MEMBER}", meta)))


def sample_key(document: str, passage: int) -> str:
    """Return the key of a passage: the document id made safe as a file name, and the passage number.

    Unsafe characters become underscores. An id that has any, is too long for a tar header or ends like a hash is
    truncated and followed by a hash, so that two ids never share a key.
    """
    safe = _UNSAFE.sub("_", document)
    if safe != document or not 0 < len(document) <= _LONGEST_ID or _HASHED.search(document):
        digest = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        safe = f"{safe[:_LONGEST_ID]}-{digest}"
    return f"{safe}_{passage:03d}"
