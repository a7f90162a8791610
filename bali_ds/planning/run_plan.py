"""The plan of a run: batch sizes, steps, memory of a rank and traffic, computed without starting anything."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from bali_ds.config import Recipe
from bali_ds.data.batch import Batch
from bali_ds.data.mixture import Mixture
from bali_ds.doctor.deepspeed_config import check_recipe, load_deepspeed_config, without_buckets
from bali_ds.losses.contrastive.communication_cost import CPU, H100, cost_of
from bali_ds.losses.contrastive.workspace import DERIVATIVE_BYTES
from bali_ds.model.aligner import Aligner
from bali_ds.model.build_model import DTYPES, build_aligner, check_headless, try_to_fuse_layers
from bali_ds.model.text_encoder import read_configuration
from bali_ds.planning.activations import PassMemory, pass_memory
from bali_ds.planning.batch_plan import BatchPlan, plan_batches
from bali_ds.planning.cluster import Cluster
from bali_ds.planning.flops import text_encoder_packs
from bali_ds.planning.loss_sizes import loss_sizes
from bali_ds.planning.memory import MemoryInputs, RankMemory, bytes_sent, rank_memory
from bali_ds.planning.run_data import RunData
from bali_ds.progress_bar import duration

STAGES = (0, 1, 2, 3)
# An H100 or A100 of 80 GB, without the CUDA context and NCCL's buffers.
GPU_BYTES = 76 * 2**30
MOST_GPUS = 4096
# Micro-batches that the largest is taken from: up to 8 steps of up to 4 ranks, fewer where a rank's batch is large.
_SAMPLED_RANKS = 4
_SAMPLED_STEPS = 8
_SAMPLED_PASSAGES = 4096


@dataclass(frozen=True)
class Plan:
    """Everything that `bali-ds plan` prints.

    Attributes:
        batch_plan: batch sizes, steps and epochs.
        parameters: number of parameters by part of the model.
        positions: tokens that the text encoder reads in the largest sampled micro-batch.
        views: text-graph pairs of that micro-batch.
        stage: ZeRO stage of the recipe's DeepSpeed configuration.
        memory: memory of a rank at each ZeRO stage.
        bytes_sent: bytes that a rank sends in one step at each ZeRO stage.
        on_gpu: whether each rank has a GPU.
        fewest_gpus: number of GPUs of 80 GB, a power of two, from which on the recipe's stage fits with as many
            passages a rank; None on CPUs, or if `MOST_GPUS` are too few.
        seconds: duration of the run; None without a throughput.
    """

    batch_plan: BatchPlan
    parameters: dict[str, int]
    positions: int
    views: int
    stage: int
    memory: tuple[RankMemory, ...]
    bytes_sent: tuple[int, ...]
    on_gpu: bool
    fewest_gpus: int | None
    seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as nested dictionaries for JSON output."""
        return asdict(self)


def plan(recipe: Recipe, *, ranks: int, on_gpu: bool, samples_per_second: float | None = None) -> Plan:
    """Return the plan of a run.

    Activation memory is that of the largest of the first micro-batches of the first ranks, measured by running the
    model on the meta device.

    Args:
        recipe: recipe of the run.
        ranks: number of training processes.
        on_gpu: whether each rank has a GPU.
        samples_per_second: measured or expected throughput over all ranks.

    Raises:
        InputError: recipe, data, DeepSpeed configuration and number of ranks are not compatible.
    """
    settings = load_deepspeed_config(recipe.deepspeed)
    check_recipe(settings, recipe)
    data = RunData.open(recipe)
    batch_plan = plan_batches(recipe, ranks, data.shards.size("train"))
    batch = _largest_batch(recipe, data, batch_plan)
    model = shapes_of_model(recipe, 2 * data.graph.num_relations, data.shards)
    model.text.for_gpu = on_gpu
    passes = _passes(recipe, model, batch, on_gpu=on_gpu)

    def inputs_of(number: int) -> MemoryInputs:
        loss = _loss_bytes(recipe, model, batch.num_views * batch_plan.micro_batches, number, on_gpu=on_gpu)
        peaks = PassMemory(passes.with_gradients + loss, passes.without_gradients + loss)
        return memory_inputs(recipe, model, settings, ranks=number, activations=peaks, on_gpu=on_gpu)

    inputs = inputs_of(ranks)
    passages = batch_plan.steps * batch_plan.passages_per_step
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    return Plan(
        batch_plan=batch_plan,
        parameters={name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()},
        positions=_positions(batch),
        views=batch.num_views,
        stage=stage,
        memory=tuple(rank_memory(inputs, stage) for stage in STAGES),
        bytes_sent=tuple(bytes_sent(inputs, stage, weight_reads(recipe)) for stage in STAGES),
        on_gpu=on_gpu,
        fewest_gpus=fewest_gpus(inputs_of, stage) if on_gpu else None,
        seconds=passages / samples_per_second if samples_per_second else None,
    )


def memory_inputs(
    recipe: Recipe,
    model: Aligner,
    settings: Mapping[str, Any],
    *,
    ranks: int,
    activations: PassMemory,
    on_gpu: bool,
) -> MemoryInputs:
    """Return the sizes of a recipe's model on a number of ranks, with the settings of DeepSpeed."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return MemoryInputs(
        parameters=sum(size for size, _ in sizes),
        trained=sum(size for size, trained in sizes if trained),
        largest=max(size for size, trained in sizes if trained),
        weight_bytes=DTYPES[recipe.precision].itemsize,
        ranks=ranks,
        activations=activations,
        on_gpu=on_gpu,
        settings=without_buckets(settings, ranks=ranks),
        names=model.table.vectors.nbytes if model.table else 0,
    )


def weight_reads(recipe: Recipe) -> int:
    """Return how often a step goes through the weights of the text encoder.

    Each micro-batch does forward and backward, once more forward if there are several, of which only one's activations
    are kept, and once more forward where layers are recomputed.
    """
    count = recipe.batch.micro_batches
    return count * (2 + (count > 1) + recipe.text_encoder.gradient_checkpointing)


def fewest_gpus(inputs_of: Callable[[int], MemoryInputs], stage: int) -> int | None:
    """Return the smallest power of two of GPUs on which a rank of a ZeRO stage fits, None if `MOST_GPUS` are too few.

    Args:
        inputs_of: returns the sizes of a run on a number of ranks; the contrastive loss grows with that number.
        stage: ZeRO stage.
    """
    numbers = (2**exponent for exponent in range(MOST_GPUS.bit_length()))
    return next((ranks for ranks in numbers if rank_memory(inputs_of(ranks), stage).peak < GPU_BYTES), None)


def gpus_needed(fewest: int | None) -> str:
    """Return what `fewest_gpus` found, in words."""
    if not fewest:
        return f"not even on {MOST_GPUS:,} GPUs of 80 GB"
    return f"from {fewest:,} GPU{'s' * (fewest > 1)} of 80 GB"


def shapes_of_model(recipe: Recipe, num_relations: int, shards: Mixture | None = None) -> Aligner:
    """Return the recipe's model on the meta device, in the recipe's precision.

    Raises:
        InputError: the encoder's configuration cannot be read, or does not fit the recipe.
    """
    check_headless(recipe)
    encoder = recipe.text_encoder
    configuration = read_configuration(encoder.path)
    with tempfile.TemporaryDirectory() as directory:
        # a directory that holds only config.json: no weights and no tokenizer are read
        configuration.save_pretrained(directory)
        own = encoder.model_copy(update={"path": directory, "weights": "random", "query_prompt": None})
        bare = recipe.model_copy(update={"text_encoder": own})
        with torch.device("meta"):
            model = build_aligner(bare, num_relations, shards)
    return model.to(DTYPES[recipe.precision]).train()


def _passes(recipe: Recipe, model: Aligner, batch: Batch, *, on_gpu: bool) -> PassMemory:
    shapes = batch.to("meta")

    def encode() -> torch.Tensor:
        views = model.encode(shapes)
        vectors = (views.text, views.graph, *(vectors for vectors, _ in views.kept.values()))
        totals = [total for name, (total, _) in views.sums.items() if model.weights[name]]
        return torch.stack([*(each.sum() for each in vectors), *totals]).sum()

    def run() -> torch.Tensor:
        if recipe.batch.micro_batches == 1:
            return encode()
        # autograd keeps the gradients of one micro-batch until those of all others are added: two take as much as many
        first, second = (checkpoint(encode, use_reentrant=False) for _ in range(2))
        total: torch.Tensor = first + second
        return total

    one = pass_memory(model, run, fused_attention=on_gpu)
    if on_gpu and try_to_fuse_layers(recipe, model.text):  # below stage 3
        one = replace(one, with_gradients=pass_memory(model, run, fused_attention=True).with_gradients)
    return one


def _loss_bytes(recipe: Recipe, model: Aligner, text_views: int, ranks: int, *, on_gpu: bool) -> int:
    node = Cluster().node
    sizes = loss_sizes(recipe, text_views, model.text.width, ranks=ranks, node=node, on_gpu=on_gpu)
    if sizes is None:
        return 0
    # the views of this rank in fp32: normalized, in another order, and their gradients
    own = sizes.rows if sizes.joint else sizes.rows + sizes.columns
    held = 3 * 4 * own * sizes.width
    # and of other ranks what the schedule has under way
    held += cost_of(sizes, H100 if on_gpu else CPU, recipe.objective.contrastive.communication).held
    if on_gpu:
        # and the derivatives by the similarities of a stripe of views, in the dtype of the features
        similarities = sizes.rows * sizes.columns * sizes.ranks**2
        held += min(DERIVATIVE_BYTES, similarities * next(model.parameters()).element_size())
    return held


def _largest_batch(recipe: Recipe, data: RunData, batch_plan: BatchPlan) -> Batch:
    steps = max(1, min(_SAMPLED_STEPS, batch_plan.steps, _SAMPLED_PASSAGES // batch_plan.passages_per_rank))
    batches: list[Batch] = []
    for rank in range(min(_SAMPLED_RANKS, batch_plan.ranks)):
        loader = data.loader(recipe, rank, batch_plan.ranks, workers=0)
        batches += [micro_batch for step in islice(loader, steps) for micro_batch in step.micro_batches]
    return max(batches, key=_positions)


def _positions(batch: Batch) -> int:
    return sum(pack.input_ids.numel() for pack in text_encoder_packs(batch))


_COLUMNS = (
    "weights", "names", "gathered", "master", "optimizer", "gradients", "buckets", "activations", "peak", "offloaded",
)  # fmt: skip


def plan_text(plan: Plan, recipe: Recipe) -> str:
    """Return the plan as text: sizes first, then memory and traffic of every ZeRO stage."""
    batch_plan = plan.batch_plan
    total = sum(plan.parameters.values())
    parts = ", ".join(f"{count / 1e6:.1f} M {name}" for name, count in plan.parameters.items())
    rows = {
        "model": f"{total / 1e6:.1f} M parameters ({parts}), {recipe.precision}",
        "batch": f"{batch_plan.passages_per_step:,} passages = {batch_plan.ranks:,} ranks x {batch_plan.micro_batches} "
        f"micro-batches x {batch_plan.passages_per_micro_batch:,}",
        "data": f"{batch_plan.training_passages:,} passages, {batch_plan.steps_per_epoch:,} steps an epoch, "
        f"{batch_plan.dropped_passages:,} passages dropped from each",
        "length": f"{batch_plan.steps:,} steps = {batch_plan.epochs:.2f} epochs, "
        f"{batch_plan.warmup_steps:,} warm-up steps",
        "tokens": f"{plan.positions:,} in a micro-batch, {plan.views:,} text-graph pairs",
        "time": duration(plan.seconds) if plan.seconds else "unknown; pass --samples-per-second for an estimate",
    }
    if plan.on_gpu:
        rows["fits"] = f"{gpus_needed(plan.fewest_gpus)} at ZeRO stage {plan.stage}, with as many passages a rank"
        if not plan.fewest_gpus:
            rows["fits"] += "; take a higher stage, offload, or train fewer passages a rank"
    lines = [f"{name:>7}  {value}" for name, value in rows.items()]
    lines += [
        "",
        f"memory of one rank, and what it sends in one step, in GiB ({recipe.deepspeed} uses ZeRO stage {plan.stage})",
        "",
    ]
    lines += [f"{'stage':>7}" + "".join(f"{name:>13}" for name in _COLUMNS) + f"{'sent':>10}"]
    for memory, sent in zip(plan.memory, plan.bytes_sent, strict=True):
        values = memory.as_dict()
        mark = "*" if memory.stage == plan.stage else " "
        cells = "".join(f"{values[name] / 2**30:13.3f}" for name in _COLUMNS)
        lines.append(f"{mark:>6}{memory.stage}{cells}{sent / 2**30:10.3f}")
    lines += [
        "",
        "peak: the most memory in use at one time, without libraries and the CUDA context (about 0.6 GiB more)",
    ]
    return "\n".join(lines)
