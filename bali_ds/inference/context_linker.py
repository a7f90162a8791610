"""Linking with all that a trained model has: mentions in context, graph views, remembered mentions, spelling."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bali_ds.errors import InputError
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.concept_dictionary import ConceptDictionary
from bali_ds.inference.concept_scorer import ConceptScorer, Scoring
from bali_ds.inference.encoder import Encoder, load
from bali_ds.inference.graph_views import open_graph_views
from bali_ds.inference.linker import Candidate
from bali_ds.inference.mention_memory import Memory, build_memory
from bali_ds.inference.spelling import SpellingIndex

LinkedMentions = tuple[Sequence[str], Sequence[tuple[str, ...]], Sequence[tuple[str, int, int]]]
"""Strings, their concept identifiers, and (text, start, end) of each; the last may be empty."""


class ContextLinker:
    """Linker that ranks the concepts of a dictionary under a `Scoring`.

    Attributes:
        encoder: the model.
        dictionary: names and concepts.
        scoring: the weights.
        scorer: the scores.
    """

    def __init__(
        self,
        path: Path,
        dictionary: ConceptDictionary,
        scoring: Scoring,
        *,
        graph: KnowledgeGraph | None = None,
        memory: LinkedMentions | None = None,
        index: Path | None = None,
        device: str = "cpu",
        progress: bool = False,
    ) -> None:
        """Encode what mentions are compared with.

        Args:
            path: an exported model; any Hugging Face encoder where no graph is used.
            dictionary: names and concepts.
            scoring: the weights; those of parts that are not given count as 0.
            graph: the graph of the training, for graph views.
            memory: linked mentions to remember, for example those of the training: supervision by labels.
            index: directory of the table of graph views, see `open_graph_views`.
            device: of the model.
            progress: show progress bars.

        Raises:
            InputError: the directory is not a model with what is asked of it, or `scoring` needs a part that is not
                given.
        """
        if scoring.graph and graph is None:
            raise InputError("a share of graph views needs the graph; pass --with-graph GRAPH")
        if scoring.memory is not None and memory is None:
            raise InputError("remembered mentions need a linked corpus; pass --memory FORMAT:PATH")
        self.encoder: Encoder = load(path, device=device)
        self.dictionary, self.scoring = dictionary, scoring
        self._names = self.encoder.encode(dictionary.names, progress=progress)
        self.scorer = ConceptScorer(
            dictionary,
            self._names,
            graph_views=self._graph_views(path, graph, device, index, progress) if graph and scoring.graph else None,
            memory=self._memory(memory) if memory and scoring.memory is not None else None,
            spelling=SpellingIndex(dictionary.names) if scoring.spelling else None,
            device=self.encoder.device,
        )

    def link(
        self, mentions: Sequence[str], places: Sequence[tuple[str, int, int]] = (), *, top: int = 5
    ) -> list[list[Candidate]]:
        """Return the `top` concepts for each mention, best first, each with its score and most similar name.

        Args:
            mentions: n strings.
            places: (text, start, end) of each; needed where the scoring has a share of context.
            top: concepts of a mention.
        """
        found: list[list[Candidate]] = []
        for queries, scores in self.scores(mentions, places):
            best = scores.topk(min(top, scores.shape[1]), dim=1)
            for vector, concepts, values in zip(queries, best.indices.tolist(), best.values.tolist(), strict=True):
                pairs = zip(concepts, values, strict=True)
                found.append(
                    [Candidate(self.dictionary.cuis[each], self._nearest(each, vector), score) for each, score in pairs]
                )
        return found

    def scores(
        self, mentions: Sequence[str], places: Sequence[tuple[str, int, int]]
    ) -> Iterator[tuple[NDArray[np.float32], torch.Tensor]]:
        """Yield the vectors of some mentions, float32 [n, d], and their scores of all concepts, float32 [n, C].

        Args:
            mentions: strings; each distinct one is encoded once.
            places: (text, start, end) of each, as in `link`.
        """
        for rows, alone, context in self.vectors(mentions, places):
            with torch.inference_mode():
                queries, scores = self.scorer.scores(alone, context, self.scoring, list(mentions[rows]))
            yield queries.cpu().numpy(), scores

    def vectors(
        self, mentions: Sequence[str], places: Sequence[tuple[str, int, int]]
    ) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor | None]]:
        """Yield the rows and the vectors, float32 [n, d], of as many mentions as are scored at once.

        The vectors are those of the mentions by themselves, and in their texts if the scoring has a share of context.
        """
        rows = {string: row for row, string in enumerate(dict.fromkeys(mentions))}
        alone = self.encoder.encode(list(rows), query=True)[[rows[string] for string in mentions]]
        context = self.encoder.encode_mentions(places) if self.scoring.context else None
        at_once, device = self.scorer.queries_at_once, self.scorer.device
        for begin in range(0, len(mentions), at_once):
            block = slice(begin, begin + at_once)
            read = None if context is None else torch.from_numpy(context[block]).to(device)
            yield block, torch.from_numpy(alone[block]).to(device), read

    def _nearest(self, concept: int, query: NDArray[np.float32]) -> str:
        names = self.dictionary.names_of(concept)
        return self.dictionary.names[names[np.argmax(self._names[names] @ query)]]

    def _graph_views(
        self, path: Path, graph: KnowledgeGraph, device: str, index: Path | None, progress: bool
    ) -> NDArray[np.float32]:
        table = open_graph_views(path, self.encoder, graph, device=device, index=index, progress=progress)
        concepts = graph.lookup(self.dictionary.cuis)
        views = np.zeros((len(concepts), self.encoder.width), np.float32)
        views[concepts >= 0] = table[concepts[concepts >= 0]]
        return views

    def _memory(self, memory: LinkedMentions) -> Memory:
        mentions, gold, places = memory
        return build_memory(self.encoder, mentions, gold, self.dictionary, places if self.scoring.context else ())
