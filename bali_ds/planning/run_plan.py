"""Everything that follows from a recipe, before anything is started."""

import tempfile
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch

from bali_ds.config import Recipe
from bali_ds.data.batch import Batch
from bali_ds.data.loader import Loader
from bali_ds.data.mixture import Mixture, open_mixture
from bali_ds.doctor.deepspeed_config import check_recipe, load_deepspeed_config
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.model.aligner import Aligner
from bali_ds.model.build_model import build_aligner
from bali_ds.model.text_encoder import read_configuration
from bali_ds.objectives.registry import stream_settings
from bali_ds.planning.activations import PassMemory, pass_memory
from bali_ds.planning.batch_plan import Arithmetic, arithmetic
from bali_ds.planning.memory import Memory, Run, bytes_sent, rank_memory

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
STAGES = (0, 1, 2, 3)
_SAMPLED_RANKS = 4
_SAMPLED_STEPS = 8
_SAMPLED_PASSAGES = 4096


@dataclass(frozen=True)
class Plan:
    """The derived numbers of a run.

    Attributes:
        arithmetic: batch, steps, epochs.
        parameters: by part of the model.
        positions: tokens and padding of the largest micro-batch looked at, passages and names together.
        views: text-graph pairs of that micro-batch.
        stage: ZeRO stage of the recipe's DeepSpeed configuration.
        memory: of a rank, for every stage.
        bytes_sent: by a rank in one step, for every stage.
        seconds: of the whole run, where a rate was given.
    """

    arithmetic: Arithmetic
    parameters: dict[str, int]
    positions: int
    views: int
    stage: int
    memory: tuple[Memory, ...]
    bytes_sent: tuple[int, ...]
    seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def plan(recipe: Recipe, *, ranks: int, on_gpu: bool, samples_per_second: float | None = None) -> Plan:
    """Return the plan of a run.

    The activations are those of the largest of the first micro-batches of the first ranks, found by running the model
    on shapes alone.

    Args:
        recipe: the run.
        ranks: processes that train.
        on_gpu: whether ranks own a GPU.
        samples_per_second: measured or hoped for, over all ranks.

    Raises:
        InputError: recipe, data, DeepSpeed configuration and ranks do not fit together.
    """
    settings = load_deepspeed_config(recipe.deepspeed)
    check_recipe(settings, recipe)
    graph, shards = KnowledgeGraph.open(recipe.data.graph), open_mixture(recipe.data.shards)
    numbers = arithmetic(recipe, ranks, len(shards.split("train")))
    batch = _largest_batch(recipe, shards, graph, numbers)
    model = shapes_of_model(recipe, 2 * graph.num_relations, shards)
    run = Run(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        largest=max(parameter.numel() for parameter in model.parameters()),
        weight_bytes=DTYPES[recipe.precision].itemsize,
        ranks=ranks,
        activations=_activations(model, batch, numbers, on_gpu=on_gpu),
        on_gpu=on_gpu,
        settings=settings,
        names=model.table.vectors.nbytes if model.table else 0,
    )
    passages = numbers.steps * numbers.passages_per_step
    return Plan(
        arithmetic=numbers,
        parameters={name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()},
        positions=_positions(batch),
        views=batch.num_views,
        stage=settings.get("zero_optimization", {}).get("stage", 0),
        memory=tuple(rank_memory(run, stage) for stage in STAGES),
        bytes_sent=tuple(bytes_sent(run, stage) for stage in STAGES),
        seconds=passages / samples_per_second if samples_per_second else None,
    )


def shapes_of_model(recipe: Recipe, num_relations: int, shards: Mixture | None = None) -> Aligner:
    """Return the recipe's model on the meta device, in the recipe's precision: shapes without values.

    Raises:
        InputError: the encoder's configuration cannot be read.
    """
    encoder = recipe.text_encoder
    configuration = read_configuration(encoder.path)
    with tempfile.TemporaryDirectory() as directory:
        # a directory without weights, so that none are read
        configuration.save_pretrained(directory)
        bare = recipe.model_copy(update={"text_encoder": encoder.model_copy(update={"path": directory})})
        with torch.device("meta"):
            model = build_aligner(bare, num_relations, shards)
    return model.to(DTYPES[recipe.precision]).train()


def _activations(model: Aligner, batch: Batch, numbers: Arithmetic, *, on_gpu: bool) -> PassMemory:
    shapes = batch.to("meta")

    def run() -> torch.Tensor:
        views = model.encode(shapes)
        vectors = (views.text, views.graph, *(vectors for vectors, _ in views.kept.values()))
        totals = [total for name, (total, _) in views.sums.items() if model.weights[name]]
        return torch.stack([*(each.sum() for each in vectors), *totals]).sum()

    one = pass_memory(model, run, fused_attention=on_gpu)
    # both views of all ranks in fp32: normalized, gathered, and their gradients
    rows = 2 * batch.num_views * numbers.micro_batches * numbers.ranks
    features = 3 * 4 * rows * model.text.width
    return PassMemory(one.kept + features, one.flowing + features)


def _largest_batch(recipe: Recipe, shards: Mixture, graph: KnowledgeGraph, numbers: Arithmetic) -> Batch:
    steps = max(1, min(_SAMPLED_STEPS, numbers.steps, _SAMPLED_PASSAGES // numbers.passages_per_rank))
    batches: list[Batch] = []
    for rank in range(min(_SAMPLED_RANKS, numbers.ranks)):
        loader = Loader(
            shards,
            graph,
            stream_settings(recipe),
            global_batch=numbers.passages_per_step,
            micro_batches=numbers.micro_batches,
            rank=rank,
            world_size=numbers.ranks,
        )
        batches += [micro_batch for step in islice(loader, steps) for micro_batch in step.micro_batches]
    return max(batches, key=_positions)


def _positions(batch: Batch) -> int:
    return sum(block.input_ids.numel() for block in (*batch.passages, *batch.names))


_COLUMNS = (
    "weights", "names", "gathered", "master", "optimizer", "gradients", "buckets", "activations", "peak", "offloaded",
)  # fmt: skip


def plan_text(plan: Plan, recipe: Recipe) -> str:
    """Return the plan for reading: numbers first, then memory and traffic of every ZeRO stage."""
    numbers = plan.arithmetic
    total = sum(plan.parameters.values())
    parts = ", ".join(f"{count / 1e6:.1f} M {name}" for name, count in plan.parameters.items())
    rows = {
        "model": f"{total / 1e6:.1f} M parameters ({parts}), {recipe.precision}",
        "batch": f"{numbers.passages_per_step:,} passages = {numbers.ranks:,} ranks x {numbers.micro_batches} "
        f"micro-batches x {numbers.passages_per_micro_batch:,}",
        "data": f"{numbers.training_passages:,} passages, {numbers.steps_per_epoch:,} steps an epoch, "
        f"{numbers.left_out:,} passages left out of each",
        "length": f"{numbers.steps:,} steps = {numbers.epochs:.2f} epochs, the first {numbers.warmup_steps:,} warm up",
        "tokens": f"{plan.positions:,} in a micro-batch (passages and names, padded), {plan.views:,} text-graph pairs",
        "time": _duration(plan.seconds) if plan.seconds else "give --samples-per-second for an estimate",
    }
    lines = [f"{name:>7}  {value}" for name, value in rows.items()]
    lines += [
        "",
        f"memory of one rank in GiB ({recipe.deepspeed} is stage {plan.stage}) and GiB it sends in a step",
        "",
    ]
    lines += [f"{'stage':>7}" + "".join(f"{name:>13}" for name in _COLUMNS) + f"{'sent':>10}"]
    for memory, sent in zip(plan.memory, plan.bytes_sent, strict=True):
        values = memory.as_dict()
        mark = "*" if memory.stage == plan.stage else " "
        cells = "".join(f"{values[name] / 2**30:13.3f}" for name in _COLUMNS)
        lines.append(f"{mark:>6}{memory.stage}{cells}{sent / 2**30:10.3f}")
    lines += ["", "peak: the largest sum at one time; libraries and the CUDA context come on top (about 0.6 GiB)"]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    days, hours = divmod(minutes // 60, 24)
    return f"{days} d {hours} h {minutes % 60:02d} min" if days else f"{hours} h {minutes % 60:02d} min"
