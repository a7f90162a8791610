"""Text-graph retrieval on held-out passages, by all ranks together."""

import deepspeed
import numpy as np
import torch

from bali_ds.config import Recipe
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.data.batch import Batch, LengthBucket
from bali_ds.data.evaluation_batches import evaluation_batches
from bali_ds.distributed import Ranks
from bali_ds.evaluation.generated_text import FILE, fact_texts, passage_text
from bali_ds.evaluation.retrieval import evaluate_retrieval
from bali_ds.files import write_json
from bali_ds.objectives.dual import PassagesWithFacts, PassagesWithFactsPart
from bali_ds.objectives.registry import stream_settings
from bali_ds.training.preemption import StopRequest
from bali_ds.training.run_directory import RunData


def validate(
    engine: deepspeed.DeepSpeedEngine, batches: list[Batch], ranks: Ranks, stop: StopRequest
) -> dict[str, float]:
    """Return R@1, MRR, alignment and uniformity over the views of all batches, the same on every rank.

    Nothing is returned where a reason to stop comes up meanwhile.

    Batches are shared out over the ranks. Every rank calls the model equally often: where the batches do not
    divide, the last one is computed again and its repetition left out.
    """
    turns = -(-len(batches) // ranks.world_size)
    own: dict[int, tuple[np.ndarray, ...]] = {}
    engine.eval()
    with torch.no_grad():
        for turn in range(turns):
            if stop.agreed():
                engine.train()
                return {}
            index = min(turn * ranks.world_size + ranks.rank, len(batches) - 1)
            _, parts = engine((batches[index].to(ranks.device),))
            own[index] = tuple(parts[name].cpu().numpy() for name in ("text_views", "graph_views", "concept_ids"))
    engine.train()
    views: dict[int, tuple[np.ndarray, ...]] = {}
    for shares in ranks.all_gather_object(own):
        views.update(shares)
    text, graph, concepts = (np.concatenate([views[i][column] for i in sorted(views)]) for column in range(3))
    measured = evaluate_retrieval(text, graph, concepts)
    return {
        f"validation/{direction}_{measure}": measured[direction][measure]["value"]
        for direction in ("text_to_graph", "graph_to_text")
        for measure in ("r@1", "mrr")
    } | {"validation/alignment": measured["alignment"], "validation/uniformity": measured["uniformity"]["text"]}


_PASSAGES = 4


def write_generated(engine: deepspeed.DeepSpeedEngine, recipe: Recipe, data: RunData, ranks: Ranks) -> None:
    """Let the decoder write facts from text and text from the graph; rank 0 keeps both beside the true ones.

    Every rank computes the same passages, so that all call the same modules equally often at every ZeRO stage. Nothing
    is written where nothing was held out.
    """
    batches = evaluation_batches(
        data.shards, data.graph, stream_settings(recipe),
        batch_size=_PASSAGES, limit=_PASSAGES, parts=(PassagesWithFactsPart(),),
    )  # fmt: skip
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
    found = [
        {
            "sample": data.shards.key(row),
            "passage": {"true": passage_text(true_text, tokenizer), "written": passage_text(text, tokenizer)},
            "facts": {"true": fact_texts(true_graph, tokenizer), "written": fact_texts(graph, tokenizer)},
        }
        for row, true_text, text, true_graph, graph in rows
    ]
    write_json(recipe.directory / FILE, found)


def _sequences(bucket: LengthBucket) -> list[list[int]]:
    rows: list[torch.Tensor] = list(bucket.input_ids)
    return [row[:length].tolist() for row, length in zip(rows, bucket.lengths.tolist(), strict=True)]
