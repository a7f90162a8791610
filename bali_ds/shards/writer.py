"""Writers of the files of a shard set: tars, sample table, names, and the index with its fingerprint."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.directories import Output
from bali_ds.files import published_file, sha256_file, write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.shards.layout import (
    END_OF_ARCHIVE,
    NPY_HEADER,
    SAMPLE_DTYPE,
    npy_bytes,
    npy_header,
    shard_opening,
    token_dtype,
)
from bali_ds.shards.sample import Sample
from bali_ds.shards.shard_index import SPLITS, TABLES, index_fingerprint
from bali_ds.shards.shard_set import Shard

SHARDS = Output(
    "a shard set",
    "index.json",
    ("shards", "fingerprint"),
    (*TABLES, "report.json", *(f"{each}-*.tar" for each in SPLITS)),
)
SIZES_DTYPE = np.dtype([("size", "<i8"), ("tokens", "<i4"), ("mentions", "<i4"), ("edges", "<i4"), ("views", "<i4")])


def sample_sizes(sample: Sample, size: int) -> tuple[int, int, int, int, int]:
    """Return the row of SIZES_DTYPE of a sample whose tar members take `size` bytes."""
    return size, len(sample.tokens), len(sample.mentions), len(sample.edges), sample.num_views


def write_shard(
    directory: Path, name: str, split: str, description: Mapping[str, Any], blocks: Iterable[bytes], samples: int
) -> Shard:
    """Publish one tar from the bytes of whole samples and return its entry for the index."""
    digest, size = hashlib.sha256(), 0
    with published_file(directory / name) as stream:
        for block in (shard_opening(description), *blocks, END_OF_ARCHIVE):
            stream.write(block)
            digest.update(block)
            size += len(block)
    return Shard(name, split, samples, size, digest.hexdigest())


def write_sample_table(directory: Path, description: Mapping[str, Any], sizes: Sequence[NDArray[np.void]]) -> None:
    """Publish samples.npy from the SIZES_DTYPE rows of each shard, in shard order."""
    opening = len(shard_opening(description))
    with published_file(directory / "samples.npy") as stream:
        stream.write(npy_header(SAMPLE_DTYPE, (sum(len(table) for table in sizes),)))
        for table in sizes:
            samples = np.empty(len(table), SAMPLE_DTYPE)
            samples["offset"] = opening + np.cumsum(table["size"]) - table["size"]
            for field in ("tokens", "mentions", "edges", "views"):
                samples[field] = table[field]
            stream.write(samples.tobytes())


def write_index(
    directory: Path, description: Mapping[str, Any], shards: Sequence[Shard], counts: Mapping[str, Any]
) -> dict[str, Any]:
    """Publish index.json, the last file of a shard set, and return it.

    The fingerprint covers the description, every tar's hash, the sample table and the names.
    """
    entries = [asdict(shard) for shard in shards]
    tables = {name: sha256_file(directory / name) for name in TABLES}
    index = {**description, "counts": dict(counts), "shards": entries, "tables": tables}
    index["fingerprint"] = index_fingerprint(index)
    write_json(directory / "index.json", index)
    return index


def shard_name(split: str, number: int) -> str:
    """Return the file name of a split's shard."""
    return f"{split}-{number:06d}.tar"


_BATCH = 8192


def write_names(directory: Path, graph: KnowledgeGraph, tokenizer: Tokenizer, max_name_tokens: int) -> None:
    """Publish names.tokens.npy and names.offsets.npy, streaming over the graph.

    A name is truncated to `max_name_tokens`; a name without tokens becomes one unknown token.
    """
    lengths = np.zeros(graph.num_names + 1, np.int64)
    with published_file(directory / "names.tokens.npy") as stream:
        stream.write(bytes(NPY_HEADER))
        for start in range(0, graph.num_names, _BATCH):
            stop = min(start + _BATCH, graph.num_names)
            ids = tokenizer.encode_ids([graph.name(name_id) for name_id in range(start, stop)])
            cut = [name[:max_name_tokens] or [tokenizer.unk_id] for name in ids]
            lengths[start + 1 : stop + 1] = [len(name) for name in cut]
            flat = [token for name in cut for token in name]
            stream.write(np.array(flat, token_dtype(tokenizer.vocab_size)).tobytes())
        offsets = np.cumsum(lengths)
        stream.seek(0)
        stream.write(npy_header(token_dtype(tokenizer.vocab_size), (int(offsets[-1]),)))
    with published_file(directory / "names.offsets.npy") as stream:
        stream.write(npy_bytes(offsets))
