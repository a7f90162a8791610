"""Parts: the samples of one input file, which any process can build independently and assembly puts in order."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bali_ds.corpus.concept_resolver import ConceptResolver
from bali_ds.corpus.dictionary_linker import DictionaryLinker
from bali_ds.corpus.document import Document, ReadReport
from bali_ds.corpus.name_index import FORMAT_VERSION as DICTIONARY_VERSION
from bali_ds.corpus.name_index import open_dictionary
from bali_ds.corpus.passages import Passage, cut_passages
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.directories import Output, published_directory
from bali_ds.files import write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.neighbor_sampling import SampledNeighbors
from bali_ds.randomness import Keys, derive
from bali_ds.shards.build_settings import BuildSettings, Corpus
from bali_ds.shards.layout import FORMAT_VERSION, npy_bytes, token_dtype
from bali_ds.shards.neighbor_settings import NeighborSettings
from bali_ds.shards.sample import Sample, sample_key
from bali_ds.shards.writer import SIZES_DTYPE, sample_sizes

_BATCH = 128
_MOST_SURFACES = 1000
"""Surface forms that are kept of each file for the report."""
_VERSION = 2
"""Raised when readers, linker or passages change, so that a build does not resume from parts of an earlier version."""
DOCUMENT_DTYPE = np.dtype(
    [
        ("id", "<u8"), ("text", "<u8"), ("samples", "<i4"), ("mentions", "<i4"), ("linked_mentions", "<i4"),
        ("withdrawn", "?"),
    ]
)  # fmt: skip
PART = Output(
    "a part of a shard set",
    "report.json",
    ("counts", "types", "surfaces", "remarks"),
    ("samples.bin", "rows.npy", "documents.npy", "concepts.npy"),
)


@dataclass(frozen=True)
class PartTask:
    """An input file and everything needed to build its part."""

    corpus: Corpus
    graph: Path
    tokenizer: str
    dictionary: Path
    settings: BuildSettings

    def key(self, graph_fingerprint: str, tokenizer_fingerprint: str) -> str:
        """Return a name for the part that changes whenever its bytes may change."""
        corpus, settings = self.corpus, self.settings
        files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in corpus.files]
        content = [
            FORMAT_VERSION, _VERSION, corpus.format, corpus.text[0] if corpus.text else "",
            DICTIONARY_VERSION if corpus.uses_dictionary else 0, files,
            settings.max_tokens, settings.stored_fan_out, settings.keep_unlinked, settings.neighbors.describe(),
            graph_fingerprint, tokenizer_fingerprint,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


class _Tools:
    """Graph, tokenizer and linker, opened once per process."""

    def __init__(self, graph: Path, tokenizer: str) -> None:
        self.graph = KnowledgeGraph.open(graph)
        self.tokenizer = Tokenizer.load(tokenizer)
        self.resolver = ConceptResolver(self.graph)

    @cache  # noqa: B019  (one object per process)
    def linker(self, dictionary: Path) -> DictionaryLinker:
        return DictionaryLinker(open_dictionary(dictionary, self.graph), self.graph)

    @cache  # noqa: B019
    def sampler(self, neighbors: NeighborSettings) -> Callable[[ArrayLike, int, Keys], SampledNeighbors]:
        return neighbors.sampler(self.graph)


_tools = cache(_Tools)


def build_part(task: PartTask, target: Path) -> None:
    """Publish the part of one input file as a directory.

    It contains `samples.bin` (concatenated tar members), `rows.npy` (SIZES_DTYPE, one row per sample), `documents.npy`
    (DOCUMENT_DTYPE, one row per document, in file order), `concepts.npy` (int32, the concatenated distinct concept ids
    of each sample) and `report.json`.

    Raises:
        InputError: the input is not a file of its format.
    """
    tools = _tools(task.graph, task.tokenizer)
    report = ReadReport()
    sizes: list[tuple[int, ...]] = []
    documents: list[tuple[int, ...]] = []
    concept_ids: list[NDArray[np.int32]] = []
    with published_directory(target, PART) as directory, open(directory / "samples.bin", "wb") as stream:
        reading = task.corpus.documents(report)
        while batch := list(islice(reading, _BATCH)):
            if task.corpus.uses_dictionary:
                batch = tools.linker(task.dictionary).link(batch)
            cut = cut_passages(batch, tools.tokenizer, tools.resolver, task.settings.max_tokens, report)
            for sample in _samples(batch, cut, tools, task.settings):
                sizes.append(_write_sample(stream, sample))
                concept_ids.append(_distinct_concepts(sample.mentions))
            documents += [_document_row(*pair, task.settings) for pair in zip(batch, cut, strict=True)]
        if not task.corpus.uses_dictionary and documents and not report.counts["mentions"]:
            report.remark("files_without_mentions", f"{task.corpus.path}: --link dictionary finds names of the graph")
        _write_tables(directory, sizes, documents, concept_ids)
        surfaces = [[*surface, count] for surface, count in report.surfaces.most_common(_MOST_SURFACES)]
        values = {"counts": report.counts, "types": report.types, "surfaces": surfaces, "remarks": report.remarks}
        write_json(directory / "report.json", values)


def _write_sample(stream: IO[bytes], sample: Sample) -> tuple[int, ...]:
    block = sample.to_bytes()
    stream.write(block)
    return sample_sizes(sample, len(block))


def _write_tables(
    directory: Path, sizes: list[Any], documents: list[Any], concept_ids: Sequence[NDArray[np.int32]]
) -> None:
    flat = np.concatenate([np.empty(0, "<i4"), *concept_ids]).astype("<i4")
    tables = {"rows": np.array(sizes, SIZES_DTYPE), "documents": np.array(documents, DOCUMENT_DTYPE), "concepts": flat}
    for name, table in tables.items():
        (directory / f"{name}.npy").write_bytes(npy_bytes(table))


def _document_row(document: Document, passages: Sequence[Passage], settings: BuildSettings) -> tuple[int, ...]:
    stored = [passage for passage in passages if len(passage.mentions) or settings.keep_unlinked]
    spans = sum(len(set(map(tuple, passage.mentions[:, :2].tolist()))) for passage in stored)
    hashes = stable_hash(document.id), stable_hash(document.text)
    return *hashes, len(stored), len(document.mentions), spans, document.withdrawn


def stable_hash(text: str) -> int:
    """Return a 64-bit hash of a string that is equal on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _samples(
    documents: Sequence[Document],
    cut: Sequence[Sequence[Passage]],
    tools: _Tools,
    settings: BuildSettings,
) -> Iterator[Sample]:
    """Yield the samples of a batch of documents; the neighborhoods of all their concepts are sampled at once."""
    stored = [
        (document, passage)
        for document, passages in zip(documents, cut, strict=True)
        for passage in passages
        if len(passage.mentions) or settings.keep_unlinked
    ]
    keys = [sample_key(document.id, passage.number) for document, passage in stored]
    edges = _neighborhoods(tools, keys, [_distinct_concepts(passage.mentions) for _, passage in stored], settings)
    dtype = token_dtype(tools.tokenizer.vocab_size)
    for (document, passage), key, rows in zip(stored, keys, edges, strict=True):
        meta = {"document": document.id, "passage": passage.number, "start": passage.start, "end": passage.end}
        yield Sample(key, passage.tokens.astype(dtype), passage.mentions, rows, meta)


def _distinct_concepts(mentions: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the distinct concept ids of mention rows in order of first mention, int32 [views]."""
    return np.fromiter(dict.fromkeys(mentions[:, 2].tolist()), np.int32)


def _neighborhoods(
    tools: _Tools, keys: Sequence[str], concept_ids: Sequence[NDArray[np.int32]], settings: BuildSettings
) -> list[NDArray[np.int32]]:
    """Return int32 [E, 3] rows (concept id, relation id, neighbor id) per sample, sampled by the sample's key alone."""
    views = [len(part) for part in concept_ids]
    flat = np.concatenate([np.empty(0, np.int32), *concept_ids])
    seeds = np.repeat(np.array([stable_hash(key) for key in keys], np.uint64), views)
    neighbor_keys = derive("stored neighbours", seeds, flat) if flat.size else np.empty(0, np.uint64)
    neighbors, relations = tools.sampler(settings.neighbors)(flat, settings.stored_fan_out, neighbor_keys)
    view, column = np.nonzero(neighbors >= 0)
    rows = np.stack([flat[view], relations[view, column], neighbors[view, column]], axis=1).astype("<i4")
    bounds = np.searchsorted(view, np.cumsum([0, *views]))
    return [rows[start:stop] for start, stop in pairwise(bounds)]
