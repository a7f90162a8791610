"""The whole training step against the same step as people write it, on the same batches.

    python bench/step.py [--layers 12] [--passages 32] [--steps 5] [--precision fp32 bf16] [--threads 1]

The encoder has the shape of BERT-base. Model, weights, batches, dropout and optimizer (torch's AdamW) are the same; the
plain step (peers/plain_step.py) pads to the longest sequence, predicts at every position, encodes the name of every
node and takes its loss from pytorch-metric-learning. Both run under torch's fused attention. The data are MedMentions
and a graph of open ontologies where they are at hand (BALI_REAL_DATA), else the sample. Seconds are those of the
processor. Writes bench/results/step.json: `speedup_over_plain` in samples per second, `padding` and `encoder_share`,
the share of a step that passes of the text encoder alone take.
"""

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from inputs.medmentions import BUILT, DATA, ROOT, build, minilm
from peers.plain_step import PlainStep

from bali_ds.cli import main as bali_ds
from bali_ds.config import Recipe
from bali_ds.data.batch import Batch
from bali_ds.files import write_json
from bali_ds.model.aligner import Aligner
from bali_ds.model.build_model import DTYPES, build_aligner
from bali_ds.planning.flops import text_encoder_packs
from bali_ds.planning.run_data import RunData

Figures = dict[str, Any]


def recipe_of(options: argparse.Namespace, folder: Path) -> Recipe:
    """Return the recipe of the step, on real data where they are."""
    encoder, built = minilm(), BUILT
    if encoder is None or not (DATA / "corpora").exists():
        encoder, built = ROOT / "shards/sample/encoder", folder
        bali_ds(["graph", "build", "--rrf", str(ROOT / "shards/sample"), "--out", str(built / "graph")])
        corpus = f"pubtator:{ROOT / 'shards/sample/corpus.pubtator'}"
        bali_ds(["shards", "build", "--graph", str(built / "graph"), "--corpus", corpus, "--tokenizer", str(encoder),
                 "--out", str(built / "shards")])  # fmt: skip
    else:
        build(DATA, encoder)
    encoder = _shaped(encoder, folder / "encoder", options.layers)
    return Recipe.model_validate(
        {
            "name": "step",
            "data": {"graph": built / "graph", "shards": str(built / "shards"), "workers": 0},
            "text_encoder": {"path": str(encoder), "weights": "random", "dropout": options.dropout},
            "graph_encoder": {} if options.dropout is None else {"dropout": options.dropout},
            "batch": {"passages": options.passages},
            "steps": options.steps + 1,
        }
    )


def _shaped(source: Path, out: Path, layers: int) -> Path:
    """Return an encoder without weights, of BERT-base's width, with the tokenizer of another."""
    out.mkdir()
    for path in source.glob("*.json"):
        shutil.copy(path, out)
    shape = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": layers}
    (out / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | shape))
    return out


def measured(recipe: Recipe, precision: str) -> Figures:
    """Return seconds, losses and tokens of both ways for the same batches."""
    data = RunData.open(recipe)
    dtype = DTYPES[precision]

    def aligner(attention: str) -> Aligner:
        encoder = recipe.text_encoder.model_copy(update={"attention": attention})
        changed = recipe.model_copy(update={"text_encoder": encoder})
        return build_aligner(changed, 2 * data.graph.num_relations, data.shards).to(dtype).train()

    ours, plain = aligner("packed"), aligner("sdpa")
    with data.loader(recipe, rank=0, world_size=1) as loader:
        begin = time.process_time()
        batches = [made.micro_batches[0] for made in islice(loader, recipe.steps)]
        loading = (time.process_time() - begin) / len(batches)
    pad_id = data.shards.index["tokenizer"]["pad_id"]
    plain_steps = [PlainStep(plain, batch, pad_id) for batch in batches]
    # step by step in turn, so that what else the machine does falls on both alike
    timed = [
        _timed(model, losses)
        for model, losses in ((ours, _ours(ours, batches)), (plain, (each.loss for each in plain_steps)))
    ]
    pairs = [(next(timed[0]), next(timed[1])) for _ in batches][1:]
    seconds = [statistics.median(pair[way][0] for pair in pairs) for way in (0, 1)]
    tokens = statistics.mean(sum(len(pack.input_ids) for pack in text_encoder_packs(each)) for each in batches[1:])
    held = sum(int(pack.lengths.sum()) for each in batches for pack in text_encoder_packs(each))
    read = sum(len(pack.input_ids) for each in batches for pack in text_encoder_packs(each))
    positions = statistics.mean(each.positions for each in plain_steps[1:])
    return {
        "seconds": seconds[0],
        "plain_seconds": seconds[1],
        "speedup_over_plain": seconds[1] / seconds[0],
        "samples_per_second": recipe.batch.passages / seconds[0],
        "loader_seconds": loading,
        "tokens": tokens,
        "padding": 1 - held / read,
        "plain_positions": positions,
        "plain_padding": 1 - sum(int(each.passage_mask.sum() + each.name_mask.sum()) for each in plain_steps) / sum(
            each.positions for each in plain_steps
        ),
        "encoder_share": _encoder_seconds(ours, batches[1]) / seconds[0],
        "losses": [pair[0][1] for pair in pairs],
        "plain_losses": [pair[1][1] for pair in pairs],
    }  # fmt: skip


def _ours(aligner: Aligner, batches: list[Batch]) -> Iterator[Callable[[], torch.Tensor]]:
    for batch in batches:
        yield lambda batch=batch: aligner([batch])[0]


def _timed(model: Aligner, losses: Iterator[Callable[[], torch.Tensor]]) -> Iterator[tuple[float, float]]:
    """Take steps; yield the seconds and the loss of each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for loss_of in losses:
        begin = time.process_time()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield time.process_time() - begin, float(loss.detach())


def _encoder_seconds(aligner: Aligner, batch: Batch) -> float:
    packs = [pack for pack in text_encoder_packs(batch) if len(pack.input_ids)]
    times = []
    for _ in range(3):
        begin = time.process_time()
        torch.cat(aligner.text.hidden_states(packs)).float().square().mean().backward()
        times.append(time.process_time() - begin)
    aligner.zero_grad(set_to_none=True)
    return statistics.median(times)


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--layers", type=int, default=12, help="of an encoder of BERT-base's width")
    parser.add_argument("--dropout", type=float, default=None, help="default: that of the encoder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/step.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(options, Path(folder))
        figures: Figures = {each: measured(recipe, each) for each in options.precision}
    if {"fp32", "bf16"} <= figures.keys():
        figures["bf16"]["speedup_over_plain_fp32"] = figures["fp32"]["plain_seconds"] / figures["bf16"]["seconds"]
    settings = {key: getattr(options, key) for key in ("passages", "steps", "layers", "dropout", "threads")}
    write_json(options.out, {"machine": platform.processor() or platform.machine(), **settings, **figures})
    for precision, row in figures.items():
        print(precision, {key: value for key, value in row.items() if not key.endswith("losses")})


if __name__ == "__main__":
    main()
