"""Projection of a run to numbers of GPUs that are not at hand: seconds of a step, hours, and what they go to.

Operations, bytes and memory are counted from the recipe; rates are those of `Cluster`. Nothing but the configuration of
the encoder is read, and the shards where they are there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bali_ds.config import Recipe
from bali_ds.doctor.deepspeed_config import check_recipe, load_deepspeed_config
from bali_ds.errors import InputError
from bali_ds.losses.contrastive.communication_cost import LossSizes, auto_cost
from bali_ds.planning.activations import PassMemory
from bali_ds.planning.cluster import Cluster
from bali_ds.planning.flops import PEAKS, StepFlops
from bali_ds.planning.memory import MemoryInputs, rank_memory, traffic
from bali_ds.planning.passage_counts import (
    ABSTRACT,
    PassageCounts,
    counts_of_shards,
    has_shards,
    locations,
    passage_flops,
)
from bali_ds.planning.run_plan import GPU_BYTES, fewest_gpus, gpus_needed, memory_inputs, shapes_of_model, weight_reads

# Relation ids of a graph that is not at hand: their embeddings are small beside any encoder.
_RELATIONS = 200


@dataclass(frozen=True)
class ProjectedRun:
    """A run on a number of GPUs.

    Attributes:
        gpus: ranks.
        passages: of one GPU in a step.
        state: bytes of weights, gradients, optimizer and buffers on a GPU at their peak, without activations.
        fits: whether the state leaves any room.
        step: seconds of a step, the sum of the next four.
        arithmetic: seconds of text and graph encoder, recomputation included.
        loss: seconds of the contrastive loss, in which the host or the products are busy.
        wire: seconds that a step waits for other GPUs.
        reading: seconds that a step waits for its data.
        hours: of the whole run.
        gpu_hours: the same times GPUs.
    """

    gpus: int
    passages: int
    state: int
    fits: bool
    step: float
    arithmetic: float
    loss: float
    wire: float
    reading: float
    hours: float
    gpu_hours: float


@dataclass(frozen=True)
class Projection:
    """What `bali-ds plan --gpus` prints.

    Attributes:
        parameters: of the whole model.
        stage: ZeRO stage.
        card: name of the GPU.
        passages: of the whole run.
        measured: whether `counts` are those of the recipe's shards, and not assumed.
        counts: of a passage.
        flops: of a passage, without recomputation.
        fewest_gpus: number of GPUs, a power of two, from which on the state fits; None if 4,096 are too few.
        runs: one for each number of GPUs.
    """

    parameters: int
    stage: int
    card: str
    passages: int
    measured: bool
    counts: PassageCounts
    flops: float
    fewest_gpus: int | None
    runs: tuple[ProjectedRun, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the projection as nested dictionaries for JSON output."""
        return asdict(self)


def project(
    recipe: Recipe,
    gpus: Sequence[int],
    *,
    passages: int | None = None,
    card: str = "H100",
    cluster: Cluster | None = None,
) -> Projection:
    """Return the projection of a recipe to several numbers of GPUs.

    The recipe's batch is that of the first number; the others have as many passages a GPU.

    Args:
        recipe: the run.
        gpus: numbers of GPUs.
        passages: of the whole run; None takes the steps or epochs of the recipe.
        card: one of `PEAKS`.
        cluster: the rates.

    Raises:
        InputError: the recipe does not fit its DeepSpeed configuration, the first number does not divide its batch, the
            encoder cannot be read, or the number of passages is unknown.
    """
    settings = load_deepspeed_config(recipe.deepspeed)
    check_recipe(settings, recipe)
    counts, training = counts_of_shards(recipe) if has_shards(recipe) else (ABSTRACT, None)
    if recipe.batch.passages % gpus[0]:
        raise InputError(f"batch.passages: {recipe.batch.passages} is not divisible by the {gpus[0]} GPUs of --gpus")
    total = passages or _passages_of_run(recipe, training)
    model = shapes_of_model(recipe, _RELATIONS)
    inputs = memory_inputs(recipe, model, settings, ranks=1, activations=PassMemory(0, 0), on_gpu=True)
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    flops = passage_flops(StepFlops.of(model), counts)
    rates = cluster or Cluster()
    work = _Work(recipe, counts, flops, model.text.width, inputs, stage, rates, rates.mfu * PEAKS[card])
    return Projection(
        parameters=inputs.parameters,
        stage=stage,
        card=card,
        passages=total,
        measured=training is not None,
        counts=counts,
        flops=flops,
        fewest_gpus=fewest_gpus(lambda ranks: replace(inputs, ranks=ranks), stage),
        runs=tuple(work.run(number, recipe.batch.passages // gpus[0], total) for number in gpus),
    )


@dataclass(frozen=True)
class _Work:
    """What a run does, and how fast.

    Attributes:
        recipe: the run.
        counts, flops: of a passage.
        width: features of a view.
        inputs: sizes of the model, for any number of ranks.
        stage: ZeRO stage.
        rates: of the cluster.
        flops_per_second: of a GPU in training steps of the encoders.
    """

    recipe: Recipe
    counts: PassageCounts
    flops: float
    width: int
    inputs: MemoryInputs
    stage: int
    rates: Cluster
    flops_per_second: float

    def run(self, gpus: int, passages: int, total: int) -> ProjectedRun:
        """Return the run of `total` passages on GPUs that take so many passages each in a step."""
        inputs, recipe = replace(self.inputs, ranks=gpus), self.recipe
        reads = weight_reads(recipe)
        # forward and backward are three thirds, and each forward pass that is run again one more
        recomputed = (reads / recipe.batch.micro_batches - 2) / 3
        arithmetic = passages * self.flops * (1 + recomputed) / self.flops_per_second
        loss, loss_wire = self._loss(gpus, passages)
        gradients, weights = traffic(inputs, self.stage, reads)
        holders = self._zero.get("zero_hpz_partition_size", 1)  # hosts that hold all weights gather them within
        weights_link = self.rates.link(holders if holders > 1 else gpus)
        weights_wire = gradients / self.rates.link(gpus) + weights / weights_link
        wire = max(0.0, weights_wire - arithmetic / 2) + loss_wire  # half of the passes hide the weights
        computing = arithmetic + loss + wire
        reading = max(0.0, self._reading(passages) - computing)
        step, state = computing + reading, rank_memory(inputs, self.stage).peak
        hours = total / (passages * gpus) * step / 3600
        return ProjectedRun(
            gpus, passages, state, state < GPU_BYTES, step, arithmetic, loss, wire, reading, hours, hours * gpus
        )

    @property
    def _zero(self) -> Mapping[str, Any]:
        return self.inputs.settings.get("zero_optimization", {})

    def _loss(self, gpus: int, passages: int) -> tuple[float, float]:
        """Return the seconds of the contrastive loss and those in which it waits, by the schedule that `auto` takes."""
        settings = self.recipe.objective.contrastive
        if not settings.weight:
            return 0.0, 0.0
        node = min(self.rates.node, gpus)
        text = round(passages * self.counts.views)
        graph = text * (1 + len(settings.further_views) + 2 * settings.other_concepts)
        rows, columns = (text + graph, text + graph) if settings.joint else (text, graph)
        half = settings.communication_dtype == "bf16" or (
            settings.communication_dtype is None and self.recipe.precision == "bf16"
        )
        ranks = {"all": gpus, "node": node, "rank": 1}[settings.negatives]
        sizes = LossSizes(ranks, min(node, ranks), rows, columns, self.width, 2 if half else 4, settings.joint)
        cost = auto_cost(sizes, self.rates.rates)
        return cost.computing, cost.waiting

    def _reading(self, passages: int) -> float:
        """Return the seconds in which the loader makes the batch of a step."""
        workers = max(1, self.recipe.data.workers)
        return passages * (self.counts.stored_bytes / self.rates.read + 1 / (workers * self.rates.loader))


def _passages_of_run(recipe: Recipe, training: int | None) -> int:
    if recipe.steps is not None:
        return recipe.steps * recipe.batch.passages
    if training is None:
        missing = next(each for each in locations(recipe) if not Path(each).is_dir())
        raise InputError(f"data.shards: {missing} is not here; say how many passages to read with --passages")
    return round((recipe.epochs or 0) * training)


def projection_text(projection: Projection, recipe: Recipe, price: float | None = None) -> str:
    """Return the projection as text: what was counted, a table, and what to change where something dominates.

    Args:
        projection: of the recipe.
        recipe: the run.
        price: of a GPU-hour, in any currency.
    """
    counts, rates = projection.counts, Cluster()
    known = "measured on its shards" if projection.measured else "assumed"
    peak = PEAKS[projection.card]
    lines = [
        f"  model  {projection.parameters / 1e6:,.0f} M parameters, ZeRO stage {projection.stage}",
        f"   data  {projection.passages:,} passages, {known}: {counts.text_tokens:.0f} tokens, "
        f"{counts.name_tokens:.0f} of names, {counts.views:.0f} views",
        f"    GPU  {projection.card}: {rates.mfu:.0%} of {peak / 1e12:,.0f} TFLOP/s; "
        f"{rates.rates.between_nodes / 1e9:.0f} GB/s to other hosts, {rates.rates.within_node / 1e9:.0f} within",
        "",
        f"{'GPUs':>6}{'passages':>10}{'state':>8}{'step':>9}{'encoders':>10}{'loss':>6}{'wire':>6}{'data':>6}{'time':>11}"
        f"{'GPU-hours':>11}" + (f"{'cost':>12}" if price else ""),
        f"{'':>6}{'a GPU':>10}{'GiB':>8}{'s':>9}{'%':>10}{'%':>6}{'%':>6}{'%':>6}{'h':>11}",
    ]
    for run in projection.runs:
        row = f"{run.gpus:6,}{run.passages:10,}{run.state / 2**30:8,.1f}"
        if not run.fits:
            lines.append(f"{row}  does not fit")
            continue
        parts = (run.arithmetic, run.loss, run.wire, run.reading)
        shares = "".join(
            f"{100 * part / run.step:{width}.0f}" for part, width in zip(parts, (10, 6, 6, 6), strict=True)
        )
        cost = f"{price * run.gpu_hours:12,.0f}" if price else ""
        lines.append(f"{row}{run.step:9.3f}{shares}{run.hours:11,.2f}{run.gpu_hours:11,.0f}{cost}")
    return "\n".join([*lines, "", *_advice(projection, recipe)])


# A part of the step that is worth a change.
_LARGE = 0.2


def _advice(projection: Projection, recipe: Recipe) -> list[str]:
    """Return where each part of a step takes a large share, and what to change there."""
    needed = gpus_needed(projection.fewest_gpus)
    lines = [f"   fits  {needed}, as far as weights, gradients and optimizer go"]
    for part, remedy in _remedies(projection, recipe).items():
        large = [f"{run.gpus:,}" for run in projection.runs if run.fits and getattr(run, part) > _LARGE * run.step]
        if large:
            lines += [f"{part:>7}  over {_LARGE:.0%} of a step on {', '.join(large)} GPUs:", f"         {remedy}"]
    return lines


def _remedies(projection: Projection, recipe: Recipe) -> dict[str, str]:
    node = "objective.contrastive.negatives: node"
    wire = f"more passages a GPU, which hide the gradients, or {node}"
    if projection.stage == 3:
        fewer = "fewer batch.micro_batches, " * (recipe.batch.micro_batches > 1)
        wire = f"{fewer}zero_hpz_partition_size: 8, or LoRA at ZeRO stage 2"
    return {
        "loss": f"{node}, or fewer passages a GPU",
        "wire": wire,
        "reading": "more data.workers, and shards on disks of the hosts",
    }
