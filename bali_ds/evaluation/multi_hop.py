"""Evaluation on multi-hop questions over a graph (the setting of Rao, Mane and Paliwal, arXiv 2211.05351).

A small head is trained on questions about known facts to map the frozen encoder's vectors of question and topic to the
vector of the answer's name. It is evaluated on questions about held-out facts. The baseline is RotatE (Sun et al., ICLR
2019), trained on the known facts and given the relations instead of the question.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from bali_ds.evaluation.bootstrap import intervals
from bali_ds.evaluation.graph_questions import GraphQuestion, QuestionMaker
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.encoder import EncoderLike

BATCH = 256
NEGATIVES = 4096


@dataclass(frozen=True)
class MultiHopTraining:
    """Training settings of the head and of the baseline.

    Attributes:
        epochs: epochs over the questions, for the head.
        graph_epochs: epochs over the facts, for the baseline.
        width: complex dimensions of a concept vector of the baseline.
        seed: seed of initialization and sampling.
    """

    epochs: int = 30
    graph_epochs: int = 100
    width: int = 128
    seed: int = 0


def evaluate_multi_hop(
    encoders: Mapping[str, EncoderLike],
    maker: QuestionMaker,
    known: Sequence[GraphQuestion],
    asked: Sequence[GraphQuestion],
    training: MultiHopTraining,
) -> dict[str, Any]:
    """Return Hits@1, Hits@10 and MRR of each encoder and the baseline, by number of hops.

    All concepts of the graph are ranked for each question, without the other correct answers (filtered setting).

    Args:
        encoders: encoders by name.
        maker: sampler of the questions; its known facts train the baseline.
        known: training questions.
        asked: test questions.
        training: settings of head and baseline.

    Returns:
        {hops: {"n": ..., "systems": {name: {"hits@1", "hits@10", "mrr"}}}}, each {"value", "low", "high"} in 0..1.
    """
    ranks = {
        name: _ranks_of_encoder(encoder, maker.graph, known, asked, training) for name, encoder in encoders.items()
    }
    ranks["RotatE, given the relations"] = _ranks_of_baseline(maker, asked, training)
    table: dict[str, Any] = {}
    for hops in sorted({len(question.relations) for question in asked}):
        rows = np.array([len(question.relations) == hops for question in asked])
        systems = {name: intervals(_measures(found[rows]), training.seed) for name, found in ranks.items()}
        table[str(hops)] = {"n": int(rows.sum()), "systems": systems}
    return table


def filtered_ranks(scores: NDArray[np.float32], questions: Sequence[GraphQuestion]) -> NDArray[np.int64]:
    """Return the rank, from 1, of each question's answer among the concepts that are not another correct answer.

    Half of the concepts with the answer's score count as ranked before it, so constant scores earn nothing.

    Args:
        scores: float [questions, concepts].
        questions: the questions, in the order of `scores`.
    """
    ranks = np.empty(len(questions), np.int64)
    for row, (own, question) in enumerate(zip(scores, questions, strict=True)):
        others = own.copy()
        others[list(question.answers | {question.topic})] = -np.inf
        answer = own[question.answer]
        ranks[row] = 1 + (others > answer).sum() + (others == answer).sum() // 2
    return ranks


def _measures(ranks: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    hits = {f"hits@{k}": (ranks <= k).astype(np.float64) for k in (1, 10)}
    return {**hits, "mrr": np.reciprocal(ranks.astype(np.float64))}


class AnswerHead(nn.Module):
    """Head that predicts the answer's vector as the topic's vector plus a learned offset."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scale = nn.Parameter(torch.tensor([3.0]))

    def forward(self, questions: Tensor, topics: Tensor) -> Tensor:
        """Return float [n, d]; the product with unit vectors of candidates gives logits."""
        predicted = topics + self.layers(torch.cat([questions, topics], dim=1))
        return F.normalize(predicted, dim=1) * self.scale.exp()


def _ranks_of_encoder(
    encoder: EncoderLike,
    graph: KnowledgeGraph,
    known: Sequence[GraphQuestion],
    asked: Sequence[GraphQuestion],
    training: MultiHopTraining,
) -> NDArray[np.int64]:
    names = torch.from_numpy(encoder.encode([graph.preferred_name(concept) for concept in range(graph.num_concepts)]))
    known_vectors, asked_vectors = (
        torch.from_numpy(encoder.encode([each.text for each in questions], query=True)) for questions in (known, asked)
    )
    generator = torch.Generator().manual_seed(training.seed)
    torch.manual_seed(training.seed)
    head = AnswerHead(names.shape[1])
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    topics, answers = (torch.tensor([getattr(each, what) for each in known]) for what in ("topic", "answer"))
    for _ in range(training.epochs):
        for rows in torch.randperm(len(known), generator=generator).split(BATCH):
            others = torch.randperm(len(names), generator=generator)[:NEGATIVES]
            candidates = torch.cat([answers[rows], others])
            scores = head(known_vectors[rows], names[topics[rows]]) @ names[candidates].T
            # further occurrences of the answer among the candidates are not negatives
            repeated = candidates[None] == answers[rows, None]
            repeated[torch.arange(len(rows)), torch.arange(len(rows))] = False
            loss = F.cross_entropy(scores.masked_fill(repeated, -torch.inf), torch.arange(len(rows)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.inference_mode():
        found = head(asked_vectors, names[torch.tensor([each.topic for each in asked])])
        parts = zip(found.split(BATCH), _batches(asked), strict=True)
        return np.concatenate([filtered_ranks((some @ names.T).numpy(), questions) for some, questions in parts])


def _ranks_of_baseline(
    maker: QuestionMaker, asked: Sequence[GraphQuestion], training: MultiHopTraining
) -> NDArray[np.int64]:
    """Rank answers by RotatE, which follows a path of relations by adding up their rotations."""
    from torch_geometric.nn.kge import RotatE

    torch.manual_seed(training.seed)
    facts = [torch.from_numpy(column) for column in maker.facts()]
    count = maker.graph.num_relations
    # a batch has few of the concepts, so dense optimizer steps over all of them would take most of the time
    model = RotatE(maker.graph.num_concepts, count, training.width, margin=6.0, sparse=True)
    optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=0.01)
    for _ in range(training.graph_epochs):
        for rows in torch.randperm(len(facts[0])).split(4 * BATCH):
            loss = model.loss(*(column[rows] for column in facts))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    ranks = []
    with torch.inference_mode():
        real, imaginary = model.node_emb.weight, model.node_emb_im.weight
        # relations from `count` on are inverses: the opposite rotations
        rotations = torch.cat([model.rel_emb.weight, -model.rel_emb.weight])
        for questions in _batches(asked):
            angles = torch.stack([rotations[list(each.relations)].sum(0) for each in questions])
            topics = [each.topic for each in questions]
            ends = torch.polar(torch.ones_like(angles), angles) * torch.complex(real[topics], imaginary[topics])
            # the order of -|end - concept|^2, computed without a difference for each pair
            scores = 2 * (ends.real @ real.T + ends.imag @ imaginary.T) - (real**2 + imaginary**2).sum(1)
            ranks.append(filtered_ranks(scores.numpy(), questions))
    return np.concatenate(ranks)


def _batches(questions: Sequence[GraphQuestion]) -> list[Sequence[GraphQuestion]]:
    return [questions[start : start + BATCH] for start in range(0, len(questions), BATCH)]
