"""Validation: text-graph retrieval on held-out passages by all ranks together, and samples of generated text."""

import deepspeed
import numpy as np
import torch

from bali_ds.config import Recipe
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.data.batch import PaddedSequences
from bali_ds.data.evaluation_batches import evaluation_batches
from bali_ds.distributed import Ranks
from bali_ds.evaluation.generated_text import FILE, fact_texts, passage_text
from bali_ds.evaluation.retrieval import evaluate_retrieval
from bali_ds.files import write_json
from bali_ds.objectives.dual_batch import PassagesWithFacts, PassagesWithFactsPart
from bali_ds.objectives.registry import stream_settings
from bali_ds.planning.run_data import RunData
from bali_ds.training.preemption import PreemptionHandler

_BATCH_SIZE = 32
_OUTPUTS = ("text_views", "graph_views", "concept_ids")


class Validator:
    """Evaluates the model on the held-out passages of a run."""

    def __init__(
        self, engine: deepspeed.DeepSpeedEngine, recipe: Recipe, data: RunData, ranks: Ranks, last_step: int
    ) -> None:
        """Collate this rank's batches of the held-out passages, which are the same each time.

        Every rank calls the model equally often: one that has no batch left encodes the last one again, and that
        output is dropped.

        Args:
            engine: the engine whose model is evaluated.
            recipe: how often, and on how many passages.
            data: the data of the run.
            ranks: the ranks of the run.
            last_step: after which the model is evaluated in any case.
        """
        self._engine, self._ranks = engine, ranks
        self._every, self._last_step = recipe.validation.every, last_step
        passages = min(len(data.shards.split("validation")), recipe.validation.passages)
        self._count = count = -(-passages // _BATCH_SIZE)
        turns = -(-count // ranks.world_size)
        self._numbers = [turn * ranks.world_size + ranks.rank for turn in range(turns)]
        self._batches = list(
            evaluation_batches(
                data.shards,
                data.graph,
                stream_settings(recipe),
                batch_size=_BATCH_SIZE,
                limit=passages,
                numbers=[min(number, count - 1) for number in self._numbers],
            )
        )

    def due(self, step: int) -> bool:
        """Return whether to evaluate after a step; never where no passage is held out."""
        is_due = step == self._last_step or bool(self._every and step % self._every == 0)
        return is_due and bool(self._batches)

    def validate(self, preemption: PreemptionHandler) -> dict[str, float]:
        """Return R@1, MRR, alignment and uniformity over the views of all batches, on rank 0.

        Every rank calls this. The result is empty on the others, and if a reason to stop comes up meanwhile.
        """
        outputs = self._gather_outputs(preemption)
        if outputs is None:
            return {}
        text, graph, concepts = outputs
        measured = evaluate_retrieval(text, graph, concepts)
        return {
            f"validation/{direction}_{measure}": measured[direction][measure]["value"]
            for direction in ("text_to_graph", "graph_to_text")
            for measure in ("r@1", "mrr")
        } | {"validation/alignment": measured["alignment"], "validation/uniformity": measured["uniformity"]["text"]}

    def _gather_outputs(self, preemption: PreemptionHandler) -> list[np.ndarray] | None:
        """Return text views, graph views and concept ids of all batches in their order, on rank 0."""
        own: dict[int, tuple[np.ndarray, ...]] = {}
        self._engine.eval()
        with torch.no_grad():
            for number, batch in zip(self._numbers, self._batches, strict=True):
                if preemption.all_reduce_reason():
                    self._engine.train()
                    return None
                _, outputs = self._engine((batch.to(self._ranks.device),))
                if number < self._count:
                    own[number] = tuple(outputs[name].cpu().numpy() for name in _OUTPUTS)
        self._engine.train()
        of_ranks = self._ranks.gather_object(own)
        if of_ranks is None:
            return None
        by_number = {number: outputs for of_rank in of_ranks for number, outputs in of_rank.items()}
        return [np.concatenate([by_number[number][column] for number in sorted(by_number)]) for column in range(3)]


_GENERATED_PASSAGES = 4


def write_generated(engine: deepspeed.DeepSpeedEngine, recipe: Recipe, data: RunData, ranks: Ranks) -> None:
    """Generate facts from text and text from the graph; rank 0 writes both beside the true ones.

    Every rank computes the same passages, so that all call the same modules equally often at every ZeRO stage. Nothing
    is written where no passage is held out.
    """
    settings, count = stream_settings(recipe), _GENERATED_PASSAGES
    batches = evaluation_batches(
        data.shards, data.graph, settings, batch_size=count, limit=count, parts=(PassagesWithFactsPart(),)
    )
    batch = next(batches, None)
    if batch is None:
        return
    engine.eval()
    aligner = engine.module
    with torch.no_grad():
        facts, passages = aligner.terms["dual"].generate(aligner.encode_for_generation(batch.to(ranks.device)))
    engine.train()
    if not ranks.is_first:
        return
    tokenizer = Tokenizer.load(recipe.text_encoder.path)
    true: PassagesWithFacts = batch.parts["dual"]
    rows = zip(
        batch.sample_rows.tolist(), _sequences(true.originals), passages.tolist(),
        _sequences(true.facts), facts.tolist(), strict=True,
    )  # fmt: skip
    generated = [
        {
            "sample": data.shards.key(row),
            "passage": {"true": passage_text(true_text, tokenizer), "written": passage_text(text, tokenizer)},
            "facts": {"true": fact_texts(true_graph, tokenizer), "written": fact_texts(graph, tokenizer)},
        }
        for row, true_text, text, true_graph, graph in rows
    ]
    write_json(recipe.directory / FILE, generated)


def _sequences(sequences: PaddedSequences) -> list[list[int]]:
    rows: list[torch.Tensor] = list(sequences.input_ids)
    return [row[:length].tolist() for row, length in zip(rows, sequences.lengths.tolist(), strict=True)]
