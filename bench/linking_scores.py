"""Which mentions of the benchmark a model links rightly, under many weights of its scores at once."""

import base64
import copy
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.concept_dictionary import ConceptDictionary, graph_dictionary
from bali_ds.inference.concept_scorer import ConceptScorer, Scoring
from bali_ds.inference.encoder import Encoder
from bali_ds.inference.graph_views import graph_view_table
from bali_ds.inference.mention_memory import build_memory
from bali_ds.inference.scoring_grid import best_concepts, scoring_grid
from bali_ds.inference.spelling import SpellingIndex
from bali_ds.model.aligner import Aligner
from bali_ds.model.pretrained import load_tokenizer
from bench.inputs.linking_split import HELD_OUT, OTHER_CORPORA, Mentions, read_mentions

CONTEXT = (0.0, 0.3, 0.5, 0.7, 1.0)
GRAPH = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
MEMORY = (None, 0.0, 0.1, 0.2)
SPELLING = (0.1, 0.3)

Hits = NDArray[np.bool_]


@dataclass(frozen=True)
class Material:
    """What all models are scored on: the parts of the split and the names and concepts of the graph."""

    graph: KnowledgeGraph
    parts: dict[str, Mentions]
    training: Mentions

    @classmethod
    def open(cls, folder: Path) -> "Material":
        """Read a folder of `bench.inputs.linking_split`."""
        graph = KnowledgeGraph.open(folder / "graph")
        parts = {part: read_mentions(file, graph) for part, file in parts_of(folder).items()}
        return cls(graph, parts, read_mentions(folder / "training.json.gz", graph))

    @cached_property
    def dictionary(self) -> ConceptDictionary:
        """All names of the graph."""
        return graph_dictionary(self.graph)

    @cached_property
    def spelling(self) -> SpellingIndex:
        """Character n-grams of the names."""
        return SpellingIndex(self.dictionary.names)


def parts_of(folder: Path) -> dict[str, Path]:
    """Return the files of the parts that models are scored on; the sample data set has no other corpora."""
    files = {part: folder / f"{part}.json.gz" for part in (HELD_OUT, *OTHER_CORPORA)}
    return {part: file for part, file in files.items() if file.exists()}


class CachingEncoder(Encoder):
    """Encoder that tokenizes what it has tokenized before only once in a process, whatever the model."""

    _cache: ClassVar[dict[Any, Any]] = {}

    def _tokenize(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        return self._once(tuple(texts), super()._tokenize, texts)

    def _windows(self, places: Sequence[tuple[str, int, int]], max_tokens: int) -> Any:
        return self._once((max_tokens, tuple(places)), super()._windows, places, max_tokens)

    def _once(self, key: Any, work: Callable[..., Any], *arguments: Any) -> Any:
        if key not in self._cache:
            self._cache[key] = work(*arguments)
        return self._cache[key]


class Model(NamedTuple):
    """An encoder, and the graph encoder that was trained with it; None if none was."""

    encoder: Encoder
    graph_encoder: torch.nn.Module | None
    fan_out: int = 0


def model_of(aligner: Aligner, tokenizer: str, *, with_graph: bool, fan_out: int) -> Model:
    """Return a trained model."""
    aligner.eval()
    aligner.text.encoder.set_attn_implementation("sdpa")  # rows instead of packed sequences
    encoder = CachingEncoder(aligner.text.encoder, load_tokenizer(tokenizer))
    return Model(encoder, aligner.graph if with_graph else None, fan_out)


def averaged(aligner: Aligner, start: Aligner, share: float) -> Aligner:
    """Return a copy of `aligner` whose text encoder has a share of the weights of `start`."""
    result = copy.deepcopy(aligner)
    pairs = zip(result.text.encoder.parameters(), start.text.encoder.parameters(), strict=True)
    with torch.no_grad():
        for parameter, other in pairs:
            parameter.lerp_(other.to(parameter.device), share)
    return result


def hits(model: Model, material: Material, graph: KnowledgeGraph) -> dict[str, Any]:
    """Return the `key` of each scoring under "scorings", and under each part which mentions are right, `packed`.

    Args:
        model: the model.
        material: the mentions.
        graph: with the facts of the training; its concepts are those of the material's graph.
    """
    encoder, dictionary = model.encoder, material.dictionary
    device = encoder.device
    names = encoder.encode(dictionary.names, normalize=False)
    table = None
    if model.graph_encoder is not None:
        row = {name: number for number, name in enumerate(dictionary.names)}
        preferred = names[[row[graph.preferred_name(concept)] for concept in range(graph.num_concepts)]]
        table = graph_view_table(preferred, model.graph_encoder, graph, model.fan_out)[graph.lookup(dictionary.cuis)]
    names /= np.maximum(np.linalg.norm(names, axis=1, keepdims=True), 1e-12)
    training = material.training
    memory = build_memory(encoder, training.mentions, training.gold, dictionary, training.places)
    torch.set_float32_matmul_precision("highest")  # equal names must have equal scores
    scorer = ConceptScorer(
        dictionary, names, graph_views=table, memory=memory, spelling=material.spelling, device=device
    )
    shares = GRAPH if table is not None else (0.0,)
    scorings = scoring_grid(CONTEXT, shares, MEMORY) + scoring_grid(CONTEXT, shares[:4], spelling=SPELLING)
    number = {key(scoring): number for number, scoring in enumerate((Scoring(spelling=np.inf), *scorings))}
    found: dict[str, Any] = {"scorings": list(number)}
    for part, queries in material.parts.items():
        row = {string: number for number, string in enumerate(dict.fromkeys(queries.mentions))}
        alone = encoder.encode(list(row), query=True)[[row[string] for string in queries.mentions]]
        context = encoder.encode_mentions(queries.places)
        gold = _padded(list(map(dictionary.rows_of, queries.gold)))
        # One array: small tensors that stay between the freed scores keep the C library from returning gigabytes.
        right = np.zeros((len(number), len(queries.mentions)), bool)
        for begin in range(0, len(queries.mentions), scorer.queries_at_once):
            rows = slice(begin, begin + scorer.queries_at_once)
            wanted = torch.from_numpy(gold[rows]).to(device)
            strings = list(queries.mentions[rows])
            vectors = [torch.from_numpy(each[rows]).to(device) for each in (alone, context)]
            for name, best in _best(scorer, *vectors, strings, scorings):
                right[number[name], rows] = (best[:, None] == wanted).any(dim=1).cpu().numpy()
        found[part] = packed(right)
    return found


def _best(
    scorer: ConceptScorer, alone: torch.Tensor, context: torch.Tensor, strings: list[str], scorings: list[Scoring]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the key of each scoring, and of spelling alone, and the best concepts of the mentions."""
    with torch.inference_mode():
        yield key(Scoring(spelling=np.inf)), scorer.largest_of_names(scorer.by_spelling(strings)).argmax(dim=1)
        for scoring, best in best_concepts(scorer, alone, context, strings, scorings):
            yield key(scoring), best


def key(scoring: Scoring) -> str:
    """Return the name of a scoring in results."""
    memory = "none" if scoring.memory is None else f"{scoring.memory:g}"
    return f"context={scoring.context:g} graph={scoring.graph:g} memory={memory} spelling={scoring.spelling:g}"


def packed(right: Hits) -> str:
    """Return bits, bool [scorings, mentions], as compressed text."""
    return base64.b64encode(lzma.compress(np.packbits(right, axis=1).tobytes())).decode()


def unpacked(text: str, scorings: int, mentions: int) -> Hits:
    """Return the bits that `packed` packed."""
    content = np.frombuffer(lzma.decompress(base64.b64decode(text)), np.uint8)
    return np.unpackbits(content.reshape(scorings, -1), axis=1, count=mentions).astype(bool)


def _padded(rows: list[list[int]]) -> NDArray[np.int64]:
    table = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table
