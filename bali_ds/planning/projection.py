"""Projected step time, duration and GPU-hours of a run on GPUs that this machine does not have.

Operations, bytes and memory are counted from the recipe; rates are those of `Cluster`. Reads the encoder's
configuration, and the shards if they exist.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bali_ds.config import Recipe
from bali_ds.doctor.deepspeed_config import check_recipe, load_deepspeed_config
from bali_ds.errors import InputError
from bali_ds.losses.contrastive.communication_cost import cost_of
from bali_ds.planning.activations import PassMemory
from bali_ds.planning.cluster import Cluster
from bali_ds.planning.flops import PEAKS, StepFlops
from bali_ds.planning.loss_sizes import loss_sizes
from bali_ds.planning.memory import MemoryInputs, rank_memory, traffic
from bali_ds.planning.passage_counts import (
    ABSTRACT,
    PassageCounts,
    counts_of_shards,
    has_shards,
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
        encoders: seconds of a step in text and graph encoder, recomputation included.
        loss: seconds of a step in the contrastive loss, in which the host or the products are busy.
        communication: seconds that a step waits for other GPUs.
        data: seconds that a step waits for its data.
        steps: of the whole run.
    """

    gpus: int
    passages: int
    state: int
    encoders: float
    loss: float
    communication: float
    data: float
    steps: float

    @property
    def fits(self) -> bool:
        """Whether the state leaves any room."""
        return self.state < GPU_BYTES

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.encoders + self.loss + self.communication + self.data

    @property
    def hours(self) -> float:
        """Hours of the whole run."""
        return self.steps * self.step / 3600

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs."""
        return self.hours * self.gpus


@dataclass(frozen=True)
class Projection:
    """What `bali-ds plan --gpus` prints.

    Attributes:
        parameters: of the whole model.
        zero: DeepSpeed's settings of ZeRO.
        card: name of the GPU.
        cluster: the rates.
        passages: of the whole run.
        measured: whether `counts` are those of the recipe's shards, and not assumed.
        counts: of a passage.
        flops: of a passage, without recomputation.
        fewest_gpus: number of GPUs, a power of two, from which on the state fits; None if `MOST_GPUS` are too few.
        runs: one for each number of GPUs.
    """

    parameters: int
    zero: Mapping[str, Any]
    card: str
    cluster: Cluster
    passages: int
    measured: bool
    counts: PassageCounts
    flops: float
    fewest_gpus: int | None
    runs: tuple[ProjectedRun, ...]

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return int(self.zero.get("stage", 0))

    def as_dict(self) -> dict[str, Any]:
        """Return the projection as nested dictionaries for JSON output."""
        derived = ("fits", "step", "hours", "gpu_hours")
        runs = [asdict(run) | {name: getattr(run, name) for name in derived} for run in self.runs]
        return asdict(self) | {"runs": runs}


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

    def inputs_of(ranks: int) -> MemoryInputs:
        return memory_inputs(recipe, model, settings, ranks=ranks, activations=PassMemory(0, 0), on_gpu=True)

    zero = settings.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    flops = passage_flops(StepFlops.of(model), counts)
    rates = cluster or Cluster()
    work = _Work(recipe, counts, flops, model.text.width, inputs_of, zero, rates, rates.mfu * PEAKS[card])
    return Projection(
        parameters=inputs_of(1).parameters,
        zero=zero,
        card=card,
        cluster=rates,
        passages=total,
        measured=training is not None,
        counts=counts,
        flops=flops,
        fewest_gpus=fewest_gpus(inputs_of, stage),
        runs=tuple(work.run(number, recipe.batch.passages // gpus[0], total) for number in gpus),
    )


@dataclass(frozen=True)
class _Work:
    """What a run does, and how fast.

    Attributes:
        recipe: the run.
        counts, flops: of a passage.
        width: features of a view.
        inputs_of: sizes of the model on a number of ranks.
        zero: DeepSpeed's settings of ZeRO.
        rates: of the cluster.
        flops_per_second: of a GPU in training steps of the encoders.
    """

    recipe: Recipe
    counts: PassageCounts
    flops: float
    width: int
    inputs_of: Callable[[int], MemoryInputs]
    zero: Mapping[str, Any]
    rates: Cluster
    flops_per_second: float

    def run(self, gpus: int, passages: int, total: int) -> ProjectedRun:
        """Return the run of `total` passages on GPUs that take so many passages each in a step."""
        inputs, recipe, stage = self.inputs_of(gpus), self.recipe, self.zero.get("stage", 0)
        reads = weight_reads(recipe)
        # forward and backward are three thirds, and each forward pass that is run again one more
        recomputed = (reads / recipe.batch.micro_batches - 2) / 3
        encoders = passages * self.flops * (1 + recomputed) / self.flops_per_second
        loss, waiting = self._loss(gpus, passages)
        sent = traffic(inputs, stage, reads)
        holders = self.zero.get("zero_hpz_partition_size", 1)
        transfers = (sent.gradients + sent.weights) / self.rates.link(gpus)
        transfers += sent.held_weights / self.rates.link(holders)
        # transfers of weights and gradients overlap half of the encoders' passes
        communication = max(0.0, transfers - encoders / 2) + waiting
        data = max(0.0, self._loader_seconds(passages) - encoders - loss - communication)
        steps = total / (passages * gpus)
        return ProjectedRun(gpus, passages, rank_memory(inputs, stage).peak, encoders, loss, communication, data, steps)

    def _loss(self, gpus: int, passages: int) -> tuple[float, float]:
        """Return the seconds of the contrastive loss, and those in which it waits for other ranks."""
        views, node = round(passages * self.counts.views), self.rates.node
        sizes = loss_sizes(self.recipe, views, self.width, ranks=gpus, node=node, on_gpu=True)
        if sizes is None:
            return 0.0, 0.0
        cost = cost_of(sizes, self.rates.rates, self.recipe.objective.contrastive.communication)
        return cost.computing, cost.waiting

    def _loader_seconds(self, passages: int) -> float:
        """Return the seconds in which the loader makes the batch of a step."""
        workers = max(1, self.recipe.data.workers)
        return passages * (self.counts.stored_bytes / self.rates.read + 1 / (workers * self.rates.loader))


def _passages_of_run(recipe: Recipe, training: int | None) -> int:
    if recipe.steps is not None:
        return recipe.steps * recipe.batch.passages
    if training is None:
        missing = next(each for each in recipe.data.locations if not Path(each).is_dir())
        raise InputError(
            f"data.shards: {missing} does not exist on this machine; say how many passages to read with --passages"
        )
    return round((recipe.epochs or 0) * training)


def projection_text(projection: Projection, recipe: Recipe, price: float | None = None) -> str:
    """Return the projection as text: what was counted, a table, and what to change where something dominates.

    Args:
        projection: of the recipe.
        recipe: the run.
        price: of a GPU-hour, in any currency.
    """
    counts, rates = projection.counts, projection.cluster
    known = "measured on its shards" if projection.measured else "assumed"
    peak = PEAKS[projection.card]
    lines = [
        f"  model  {projection.parameters / 1e6:,.0f} M parameters, ZeRO stage {projection.stage}",
        f"   data  {projection.passages:,} passages, {known}: {counts.text_tokens:.0f} tokens, "
        f"{counts.name_tokens:.0f} of names, {counts.views:.0f} views",
        f"    GPU  {projection.card}: {rates.mfu:.0%} of {peak / 1e12:,.0f} TFLOP/s; "
        f"{rates.rates.between_nodes / 1e9:.0f} GB/s to other hosts, {rates.rates.within_node / 1e9:.0f} within",
        "",
        f"{'GPUs':>6}{'passages':>10}{'state':>8}{'step':>8}{'encoders':>10}{'loss':>6}{'communication':>14}{'data':>6}{'time':>9}"
        f"{'GPU-hours':>11}" + (f"{'cost':>11}" if price is not None else ""),
        f"{'':>6}{'a GPU':>10}{'GiB':>8}{'s':>8}{'%':>10}{'%':>6}{'%':>14}{'%':>6}{'h':>9}",
    ]
    for run in projection.runs:
        row = f"{run.gpus:6,}{run.passages:10,}{run.state / 2**30:8,.1f}"
        if not run.fits:
            lines.append(f"{row}  does not fit")
            continue
        parts = (run.encoders, run.loss, run.communication, run.data)
        shares = "".join(
            f"{100 * part / run.step:{width}.0f}" for part, width in zip(parts, (10, 6, 14, 6), strict=True)
        )
        cost = f"{price * run.gpu_hours:11,.0f}" if price is not None else ""
        lines.append(f"{row}{run.step:8.3f}{shares}{run.hours:9,.2f}{run.gpu_hours:11,.0f}{cost}")
    return "\n".join([*lines, "", *_advice(projection, recipe)])


# A part of the step that is worth a change.
_LARGE = 0.2


def _advice(projection: Projection, recipe: Recipe) -> list[str]:
    """Return where each part of a step takes a large share, and what to change there."""
    needed = gpus_needed(projection.fewest_gpus)
    lines = [f"         fits  {needed}, as far as weights, gradients and optimizer go"]
    for part, remedy in _remedies(projection, recipe).items():
        large = [f"{run.gpus:,}" for run in projection.runs if run.fits and getattr(run, part) > _LARGE * run.step]
        if large:
            lines += [f"{part:>13}  over {_LARGE:.0%} of a step on {', '.join(large)} GPUs:", f"{'':>15}{remedy}"]
    return lines


def _remedies(projection: Projection, recipe: Recipe) -> dict[str, str]:
    """Return what reduces each part of a step, without what the recipe has already."""
    node = ["objective.contrastive.negatives: node"] * (recipe.objective.contrastive.negatives == "all")
    communication = ["more passages a GPU, which hide the gradients", *node]
    if projection.stage == 3:
        fewer = ["fewer batch.micro_batches"] * (recipe.batch.micro_batches > 1)
        held = ["zero_hpz_partition_size: 8"] * ("zero_hpz_partition_size" not in projection.zero)
        communication = [*fewer, *held, "LoRA at ZeRO stage 2"]
    remedies = {
        "loss": [*node, "fewer passages a GPU"],
        "communication": communication,
        "data": ["more data.workers", "shards on disks of the hosts"],
    }
    return {part: "; ".join(texts) for part, texts in remedies.items()}
