"""One input file turned into samples: a part, which any process can make alone and which assembly puts in order."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
from bali_ds.corpus.readers import join_mentions, read_documents
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.directories import Output, published_directory
from bali_ds.errors import InputError
from bali_ds.files import write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.neighbor_sampling import SampledNeighbors
from bali_ds.randomness import Keys, derive
from bali_ds.shards.layout import FORMAT_VERSION, npy_bytes, token_dtype
from bali_ds.shards.sample import Sample, sample_key
from bali_ds.shards.stored_neighbors import NeighborChoice
from bali_ds.shards.writer import ROW_DTYPE, sample_row

_BATCH = 128
DOCUMENT_DTYPE = np.dtype(
    [
        ("id", "<u8"), ("text", "<u8"), ("samples", "<i4"), ("mentions", "<i4"), ("linked_mentions", "<i4"),
        ("withdrawn", "?"),
    ]
)  # fmt: skip
PART = Output(
    "a part of a shard set",
    "report.json",
    ("counts", "types", "remarks"),
    ("samples.bin", "rows.npy", "documents.npy", "concepts.npy"),
)
LINKS = ("gold", "dictionary")
_WITHOUT_LINKS = ("medline", "jats")


@dataclass(frozen=True)
class BuildSettings:
    """What decides the bytes of a shard set, beside its inputs.

    Attributes:
        max_tokens: tokens of a passage, special ones included.
        max_name_tokens: tokens of a concept's name.
        stored_fan_out: neighbors stored with each concept.
        neighbors: which facts these are.
        shard_samples: samples in a tar.
        validation: share of the documents held out, chosen by their ids.
        keep_unlinked: keep passages without a linked mention.
        concept_cap: keep a passage only while one of its concepts is in fewer passages than this; 0 keeps all.
    """

    max_tokens: int = 128
    max_name_tokens: int = 32
    stored_fan_out: int = 32
    shard_samples: int = 4096
    validation: float = 0.0
    keep_unlinked: bool = False
    concept_cap: int = 0
    neighbors: NeighborChoice = field(default_factory=NeighborChoice)


@dataclass(frozen=True)
class Corpus:
    """An input file: its format, its path, where its mentions come from, and where its text does.

    Attributes:
        link: "gold" for the mentions of the file, "dictionary" to find them; "" for what the format calls for.
        text: format and path of the file that has the text, where this file has links alone.
    """

    format: str
    path: Path
    link: str = ""
    text: tuple[str, Path] | None = None

    @property
    def uses_dictionary(self) -> bool:
        """Are the mentions found by the dictionary linker?"""
        return self.link == "dictionary" or (not self.link and not self.text and self.format in _WITHOUT_LINKS)

    def documents(self, report: ReadReport) -> Iterator[Document]:
        """Yield the documents with the mentions that the files give."""
        if self.text is None:
            return read_documents(self.format, self.path, report)
        if self.format != "pubtator":
            raise InputError(f"{self.path}: --text joins PubTator rows alone; its format is {self.format}")
        return join_mentions(read_documents(self.text[0], self.text[1], report), self.path, report)


@dataclass(frozen=True)
class PartTask:
    """An input file and everything needed to make its part."""

    corpus: Corpus
    graph: Path
    tokenizer: str
    dictionary: Path
    settings: BuildSettings

    def key(self, graph_fingerprint: str, tokenizer_fingerprint: str) -> str:
        """Return a name for the part that changes whenever its bytes might."""
        corpus, settings = self.corpus, self.settings
        files = [corpus.path, *([corpus.text[1]] if corpus.text else [])]
        states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        matter = [
            FORMAT_VERSION, corpus.format, corpus.text[0] if corpus.text else "",
            DICTIONARY_VERSION if corpus.uses_dictionary else 0, states,
            settings.max_tokens, settings.stored_fan_out, settings.keep_unlinked, settings.neighbors.describe(),
            graph_fingerprint, tokenizer_fingerprint,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(matter).encode()).hexdigest()[:24]


class _Tools:
    """Graph, tokenizer and linker, opened once in each process."""

    def __init__(self, graph: Path, tokenizer: str) -> None:
        self.graph = KnowledgeGraph.open(graph)
        self.tokenizer = Tokenizer.load(tokenizer)
        self.resolver = ConceptResolver(self.graph)

    @cache  # noqa: B019  (one object a process)
    def linker(self, dictionary: Path) -> DictionaryLinker:
        return DictionaryLinker(open_dictionary(dictionary, self.graph), self.graph)

    @cache  # noqa: B019
    def sampler(self, neighbors: NeighborChoice) -> Callable[[ArrayLike, int, Keys], SampledNeighbors]:
        return neighbors.sampler(self.graph)


_tools = cache(_Tools)


def make_part(task: PartTask, target: Path) -> None:
    """Publish the part of one input file as a directory.

    It holds `samples.bin` (tar members, back to back), `rows.npy` (ROW_DTYPE, one a sample), `documents.npy`
    (DOCUMENT_DTYPE, one a document, in file order), `concepts.npy` (int32, the distinct concepts of each sample, back
    to back) and `report.json`.

    Raises:
        InputError: the input is not what its format says.
    """
    tools = _tools(task.graph, task.tokenizer)
    report = ReadReport()
    rows: list[tuple[int, ...]] = []
    documents: list[tuple[int, ...]] = []
    concepts: list[NDArray[np.int32]] = []
    with published_directory(target, PART) as directory, open(directory / "samples.bin", "wb") as stream:
        reading = task.corpus.documents(report)
        while batch := list(islice(reading, _BATCH)):
            if task.corpus.uses_dictionary:
                batch = tools.linker(task.dictionary).link(batch)
            cut = cut_passages(batch, tools.tokenizer, tools.resolver, task.settings.max_tokens, report)
            for sample in _samples(batch, cut, tools, task.settings):
                rows.append(_write_sample(stream, sample))
                concepts.append(_distinct(sample.mentions))
            documents += [_document_row(*pair, task.settings) for pair in zip(batch, cut, strict=True)]
        if not task.corpus.uses_dictionary and documents and not report.counts["mentions"]:
            report.remark("files_without_mentions", f"{task.corpus.path}: --link dictionary finds names of the graph")
        _write_tables(directory, rows, documents, concepts)
        write_json(
            directory / "report.json", {"counts": report.counts, "types": report.types, "remarks": report.remarks}
        )


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
    spans = sum(len(set(map(tuple, passage.mentions[:, :2].tolist()))) for passage in stored)
    hashes = stable_hash(document.id), stable_hash(document.text)
    return *hashes, len(stored), len(document.mentions), spans, document.withdrawn


def stable_hash(text: str) -> int:
    """Return a 64-bit hash of a string that is the same everywhere."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _samples(
    documents: Sequence[Document],
    cut: Sequence[Sequence[Passage]],
    tools: _Tools,
    settings: BuildSettings,
) -> Iterator[Sample]:
    """Yield the samples of a batch of documents, the neighborhoods of all its concepts drawn at once."""
    stored = [
        (document, passage)
        for document, passages in zip(documents, cut, strict=True)
        for passage in passages
        if len(passage.mentions) or settings.keep_unlinked
    ]
    keys = [sample_key(document.id, passage.number) for document, passage in stored]
    edges = _neighborhoods(tools, keys, [_distinct(passage.mentions) for _, passage in stored], settings)
    dtype = token_dtype(tools.tokenizer.vocab_size)
    for (document, passage), key, rows in zip(stored, keys, edges, strict=True):
        meta = {"document": document.id, "passage": passage.number, "start": passage.start, "end": passage.end}
        yield Sample(key, passage.tokens.astype(dtype), passage.mentions, rows, meta)


def _distinct(mentions: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the distinct concepts of mention rows in order of first mention, int32 [views]."""
    return np.fromiter(dict.fromkeys(mentions[:, 2].tolist()), np.int32)


def _neighborhoods(
    tools: _Tools, keys: Sequence[str], concepts: Sequence[NDArray[np.int32]], settings: BuildSettings
) -> list[NDArray[np.int32]]:
    """Return int32 [E, 3] rows (concept, relation, neighbor) for each sample: a draw that its key alone decides."""
    views = [len(part) for part in concepts]
    flat = np.concatenate([np.empty(0, np.int32), *concepts])
    seeds = np.repeat(np.array([stable_hash(key) for key in keys], np.uint64), views)
    draws = derive("stored neighbours", seeds, flat) if flat.size else np.empty(0, np.uint64)
    neighbors, relations = tools.sampler(settings.neighbors)(flat, settings.stored_fan_out, draws)
    view, column = np.nonzero(neighbors >= 0)
    rows = np.stack([flat[view], relations[view, column], neighbors[view, column]], axis=1).astype("<i4")
    bounds = np.searchsorted(view, np.cumsum([0, *views]))
    return [rows[start:stop] for start, stop in pairwise(bounds)]
