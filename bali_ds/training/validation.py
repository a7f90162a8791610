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
        """Collate the held-out passages, which are the same each time.

        Args:
            engine: the engine whose model is evaluated.
            recipe: how often, and on how many passages.
            data: the data of the run.
            ranks: the ranks of the run.
            last_step: after which the model is evaluated in any case.
        """
        self._engine, self._ranks = engine, ranks
        self._every, self._last_step = recipe.validation.every, last_step
        self._batches = []
        if len(data.shards.split("validation")):
            settings, limit = stream_settings(recipe), recipe.validation.passages
            batches = evaluation_batches(data.shards, data.graph, settings, batch_size=_BATCH_SIZE, limit=limit)
            self._batches = list(batches)

    def due(self, step: int) -> bool:
        """Return whether to evaluate after a step; never where no passage is held out."""
        is_due = step == self._last_step or bool(self._every and step % self._every == 0)
        return is_due and bool(self._batches)

    def validate(self, preemption: PreemptionHandler) -> dict[str, float]:
        """Return R@1, MRR, alignment and uniformity over the views of all batches, the same on every rank.

        Every rank calls this. The result is empty if a reason to stop comes up meanwhile.
        """
        outputs = self._all_outputs(preemption)
        if outputs is None:
            return {}
        text, graph, concepts = outputs
        measured = evaluate_retrieval(text, graph, concepts)
        return {
            f"validation/{direction}_{measure}": measured[direction][measure]["value"]
            for direction in ("text_to_graph", "graph_to_text")
            for measure in ("r@1", "mrr")
        } | {"validation/alignment": measured["alignment"], "validation/uniformity": measured["uniformity"]["text"]}

    def _all_outputs(self, preemption: PreemptionHandler) -> list[np.ndarray] | None:
        """Return text views, graph views and concept ids of all batches, which the ranks encode in turns.

        Every rank calls the model equally often: where the number of batches is not divisible by the ranks, the last
        batch is encoded again and the repetition is dropped.
        """
        batches, ranks = self._batches, self._ranks
        turns = -(-len(batches) // ranks.world_size)
        own: dict[int, tuple[np.ndarray, ...]] = {}
        self._engine.eval()
        with torch.no_grad():
            for turn in range(turns):
                if preemption.all_reduce_reason():
                    self._engine.train()
                    return None
                index = min(turn * ranks.world_size + ranks.rank, len(batches) - 1)
                _, outputs = self._engine((batches[index].to(ranks.device),))
                own[index] = tuple(outputs[name].cpu().numpy() for name in _OUTPUTS)
        self._engine.train()
        by_batch: dict[int, tuple[np.ndarray, ...]] = {}
        for of_rank in ranks.all_gather_object(own):
            by_batch.update(of_rank)
        return [np.concatenate([by_batch[index][column] for index in sorted(by_batch)]) for column in range(3)]


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
