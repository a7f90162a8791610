"""What a trained decoder writes of a few held-out passages, by all ranks together."""

import deepspeed
import torch

from bali_ds.config import Recipe
from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.evaluation.generated import FILE, fact_texts, passage_text
from bali_ds.files import write_json
from bali_ds.stream.batch import TokenBlock
from bali_ds.stream.evaluation import evaluation_batches
from bali_ds.stream.settings import StreamSettings
from bali_ds.training.cluster import Cluster
from bali_ds.training.run import Data

_PASSAGES = 4


def write_generated(engine: deepspeed.DeepSpeedEngine, recipe: Recipe, data: Data, cluster: Cluster) -> None:
    """Let the decoder write facts from text and text from the graph; rank 0 keeps both beside the true ones.

    Every rank computes the same passages, so that all call the same modules equally often at every ZeRO stage. Nothing
    is written where nothing was held out.
    """
    settings = StreamSettings.of(recipe)
    batches = evaluation_batches(data.shards, data.graph, settings, batch_size=_PASSAGES, limit=_PASSAGES, triples=True)
    batch = next(batches, None)
    if batch is None:
        return
    engine.eval()
    facts, passages = engine.module.written(batch.to(cluster.device))
    engine.train()
    if not cluster.first:
        return
    tokenizer = Tokenizer.load(recipe.text_encoder.path)
    rows = zip(
        batch.sample_ids.tolist(), _sequences(batch.originals[0]), passages.tolist(),
        _sequences(batch.triples[0]), facts.tolist(), strict=True,
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


def _sequences(block: TokenBlock) -> list[list[int]]:
    rows: list[torch.Tensor] = list(block.input_ids)
    return [row[:length].tolist() for row, length in zip(rows, block.lengths.tolist(), strict=True)]
