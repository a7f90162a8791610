"""The DeepSpeed engine of a run, from recipe and DeepSpeed JSON."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from bali_ds.config import OptimizerConfig, Recipe
from bali_ds.doctor.deepspeed_config import check_recipe, load_deepspeed_config, without_buckets
from bali_ds.library_internals import gradients_checked, parameter_shape
from bali_ds.model.aligner import Aligner
from bali_ds.model.build_model import try_to_fuse_layers
from bali_ds.model.text_encoder import TextEncoder
from bali_ds.planning.batch_plan import BatchPlan


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int) -> float:
    """Return the factor of the base learning rates in one optimizer step.

    Linear warm-up from 1/warmup_steps to 1, then half a cosine that would reach 0 right after the last step.

    Args:
        step: steps taken so far, 0 in the first.
        steps: optimizer steps of the whole run, those before a resume included.
        warmup_steps: steps of the warm-up, fewer than `steps`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def deepspeed_settings(recipe: Recipe, batch_plan: BatchPlan) -> dict[str, Any]:
    """Return the recipe's DeepSpeed JSON completed by the settings that the recipe decides.

    A rank's slice of the batch is one engine call, cut into micro-batches by the model, so DeepSpeed itself never
    accumulates gradients.

    Raises:
        InputError: the JSON is unusable, or contradicts the recipe.
    """
    settings = without_buckets(load_deepspeed_config(recipe.deepspeed), ranks=batch_plan.ranks)
    check_recipe(settings, recipe)
    settings["train_batch_size"] = batch_plan.passages_per_step
    settings["train_micro_batch_size_per_gpu"] = batch_plan.passages_per_rank
    settings["gradient_accumulation_steps"] = 1
    # DeepSpeed clips at 1.0 by default, so 0 must be passed too.
    settings["gradient_clipping"] = recipe.optimizer.gradient_clipping
    if recipe.precision != "fp32":
        settings[recipe.precision] = {"enabled": True}
        if recipe.precision == "bf16":
            # the stability checks have seen every gradient; DeepSpeed would start 13 kernels for each to see it again
            settings["bf16"]["check_grad_overflow"] = False
    return settings


def parameter_groups(aligner: Aligner, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups: pretrained and new parameters, each with and without weight decay.

    The text encoder and its pretrained head have the text encoder's learning rate, everything else the graph
    encoder's. Vectors (biases, normalization, scales) are not decayed. Each group holds its base learning rate as
    `base_learning_rate`, which the schedule multiplies.
    """
    pretrained = ("text.encoder.",) if aligner.text.fresh_head else ("text.",)
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in aligner.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith(pretrained), len(parameter_shape(parameter)) > 1), []).append(parameter)
    rates = {True: optimizer.text_learning_rate, False: optimizer.graph_learning_rate}
    return [
        {
            "params": parameters,
            "lr": rates[is_pretrained],
            "base_learning_rate": rates[is_pretrained],
            "weight_decay": optimizer.weight_decay if is_matrix else 0.0,
        }
        for (is_pretrained, is_matrix), parameters in groups.items()
    ]


def build_engine(aligner: Aligner, recipe: Recipe, settings: dict[str, Any]) -> deepspeed.DeepSpeedEngine:
    """Return the ZeRO-sharded engine; every rank calls this with equal weights and `deepspeed_settings`."""
    groups = parameter_groups(aligner, recipe.optimizer)
    fused = get_accelerator().device_name() == "cuda"
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=fused)
    # In half precision at stage 0 DeepSpeed creates the moments by a step with zero gradients, which would decay the
    # weights and be counted. At learning rate 0 it changes nothing; the count is reset below.
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    engine, *_ = deepspeed.initialize(model=aligner, optimizer=optimizer, config=settings)
    for state in optimizer.state.values():
        state["step"].zero_()
    set_learning_rates(engine, 1.0)
    return engine


@contextmanager
def deterministic_kernels(*, wanted: bool) -> Iterator[None]:
    """Let every kernel of the block repeat its results bit for bit on the same device, if wanted."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def accelerate(text: TextEncoder, recipe: Recipe, settings: dict[str, Any], device: torch.device) -> None:
    """Fuse the text encoder's layers where a recipe, the device and the architecture allow it.

    Call this before `build_engine`.
    """
    # stage 3 gathers weights in hooks of modules, which fused layers would skip
    if device.type == "cuda" and settings.get("zero_optimization", {}).get("stage", 0) < 3:
        try_to_fuse_layers(recipe, text)


def set_learning_rates(engine: Any, factor: float) -> None:
    """Set every group's learning rate to its base times `factor`."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["base_learning_rate"] * factor


def discard_gradients(engine: Any) -> None:
    """Drop the gradients of a step whose loss is non-finite; weights and optimizer state do not change."""
    if engine.zero_optimization_stage() or engine.fp16_enabled() or engine.bfloat16_enabled():
        # DeepSpeed's own optimizers skip a step whose gradients they find to be non-finite
        with gradients_checked(engine):
            engine.step()
    else:
        engine.optimizer.zero_grad(set_to_none=True)
