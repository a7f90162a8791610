"""One input file turned into samples: a part, which any process can make alone and which assembly puts in order."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.corpus.document import Document, ReadReport
from bali_ds.corpus.links import ConceptResolver
from bali_ds.corpus.passages import Passage, cut_passages
from bali_ds.corpus.readers import read_documents
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.files import published_directory, write_json
from bali_ds.graph.sampling import sample_neighbours
from bali_ds.graph.store import KnowledgeGraph
from bali_ds.randomness import derive
from bali_ds.shards.layout import npy_bytes, token_dtype
from bali_ds.shards.sample import Sample, sample_key
from bali_ds.shards.writer import ROW_DTYPE, sample_row

_BATCH = 64
DOCUMENT_DTYPE = np.dtype(
    [("id", "<u8"), ("text", "<u8"), ("samples", "<i4"), ("mentions", "<i4"), ("linked_mentions", "<i4")]
)


@dataclass(frozen=True)
class BuildSettings:
    """What decides the bytes of a shard set, beside its inputs."""

    max_tokens: int = 128
    max_name_tokens: int = 32
    stored_fan_out: int = 32
    shard_samples: int = 4096
    validation: float = 0.0
    keep_unlinked: bool = False


@dataclass(frozen=True)
class PartTask:
    """An input file and everything needed to make its part."""

    format: str
    path: str
    graph: str
    tokenizer: str
    settings: BuildSettings

    def key(self, graph_fingerprint: str, tokenizer_fingerprint: str) -> str:
        """Return a name for the part that changes whenever its bytes might."""
        file = Path(self.path).stat()
        matter = [self.format, self.path, file.st_size, file.st_mtime_ns, asdict(self.settings)]
        text = json.dumps([*matter, graph_fingerprint, tokenizer_fingerprint], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


@cache
def _tools(graph: str, tokenizer: str) -> tuple[KnowledgeGraph, Tokenizer, ConceptResolver]:
    """Open graph and tokenizer once in each process."""
    opened = KnowledgeGraph.open(graph)
    return opened, Tokenizer.load(tokenizer), ConceptResolver(opened)


def make_part(task: PartTask, target: Path) -> None:
    """Publish the part of one input file as a directory.

    It holds `samples.bin` (tar members, back to back), `rows.npy` (ROW_DTYPE, one a sample), `documents.npy`
    (DOCUMENT_DTYPE, one a document, in file order), `concepts.npy` (int32, the distinct concepts of each sample, back
    to back) and `report.json`.

    Raises:
        InputError: the input is not what its format says.
    """
    graph, tokenizer, resolver = _tools(task.graph, task.tokenizer)
    report = ReadReport()
    rows: list[tuple[int, ...]] = []
    documents: list[tuple[int, ...]] = []
    concepts: list[NDArray[np.int32]] = []
    with published_directory(target) as directory, open(directory / "samples.bin", "wb") as stream:
        reading = read_documents(task.format, Path(task.path), report)
        while batch := list(islice(reading, _BATCH)):
            cut = cut_passages(batch, tokenizer, resolver, task.settings.max_tokens, report)
            for sample in _samples(batch, cut, graph, tokenizer, task.settings):
                rows.append(_write_sample(stream, sample))
                concepts.append(_distinct(sample.mentions))
            documents += [_document_row(*pair, task.settings) for pair in zip(batch, cut, strict=True)]
        _write_tables(directory, rows, documents, concepts)
        write_json(directory / "report.json", {"counts": report.counts, "remarks": report.remarks})


def _write_sample(stream: IO[bytes], sample: Sample) -> tuple[int, ...]:
    block = sample.to_bytes()
    stream.write(block)
    return sample_row(sample, len(block))


def _write_tables(
    directory: Path, rows: list[Any], documents: list[Any], concepts: Sequence[NDArray[np.int32]]
) -> None:
    flat = np.concatenate([np.empty(0, "<i4"), *concepts]).astype("<i4")
    tables = {"rows": np.array(rows, ROW_DTYPE), "documents": np.array(documents, DOCUMENT_DTYPE), "concepts": flat}
    for name, table in tables.items():
        (directory / f"{name}.npy").write_bytes(npy_bytes(table))


def _document_row(document: Document, passages: Sequence[Passage], settings: BuildSettings) -> tuple[int, ...]:
    stored = [passage for passage in passages if len(passage.mentions) or settings.keep_unlinked]
    spans = sum(len(np.unique(passage.mentions[:, :2], axis=0)) for passage in stored)
    return stable_hash(document.id), stable_hash(document.text), len(stored), len(document.mentions), spans


def stable_hash(text: str) -> int:
    """Return a 64-bit hash of a string that is the same everywhere."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _samples(
    documents: Sequence[Document],
    cut: Sequence[Sequence[Passage]],
    graph: KnowledgeGraph,
    tokenizer: Tokenizer,
    settings: BuildSettings,
) -> Iterator[Sample]:
    """Yield the samples of a batch of documents, the neighbourhoods of all its concepts drawn at once."""
    stored = [
        (document, passage)
        for document, passages in zip(documents, cut, strict=True)
        for passage in passages
        if len(passage.mentions) or settings.keep_unlinked
    ]
    keys = [sample_key(document.id, passage.number) for document, passage in stored]
    edges = _neighbourhoods(graph, keys, [_distinct(passage.mentions) for _, passage in stored], settings)
    dtype = token_dtype(tokenizer.vocab_size)
    for (document, passage), key, rows in zip(stored, keys, edges, strict=True):
        meta = {"document": document.id, "passage": passage.number, "start": passage.start, "end": passage.end}
        yield Sample(key, passage.tokens.astype(dtype), passage.mentions, rows, meta)


def _distinct(mentions: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the distinct concepts of mention rows in order of first mention, int32 [views]."""
    return np.fromiter(dict.fromkeys(mentions[:, 2].tolist()), np.int32)


def _neighbourhoods(
    graph: KnowledgeGraph, keys: Sequence[str], concepts: Sequence[NDArray[np.int32]], settings: BuildSettings
) -> list[NDArray[np.int32]]:
    """Return int32 [E, 3] rows (concept, relation, neighbour) for each sample: a draw that its key alone decides."""
    views = [len(part) for part in concepts]
    flat = np.concatenate([np.empty(0, np.int32), *concepts])
    seeds = np.repeat(np.array([stable_hash(key) for key in keys], np.uint64), views)
    draws = derive("stored neighbours", seeds, flat) if flat.size else np.empty(0, np.uint64)
    neighbours, relations = sample_neighbours(graph, flat, settings.stored_fan_out, draws)
    view, column = np.nonzero(neighbours >= 0)
    rows = np.stack([flat[view], relations[view, column], neighbours[view, column]], axis=1).astype("<i4")
    bounds = np.searchsorted(view, np.cumsum([0, *views]))
    return [rows[start:stop] for start, stop in pairwise(bounds)]
