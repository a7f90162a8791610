"""The DeepSpeed engine of a run, from recipe and DeepSpeed JSON."""

import math
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from bali_ds.config import OptimizerConfig, Recipe
from bali_ds.doctor.deepspeed_config import check_recipe, load_deepspeed_config
from bali_ds.model.aligner import Aligner
from bali_ds.planning.batch_plan import BatchPlan


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int) -> float:
    """Return what the base learning rates are multiplied by in one optimizer step.

    Linear warm-up from 1/warmup_steps to 1, then half a cosine that would reach 0 right after the last step.

    Args:
        step: steps taken so far, 0 in the first.
        steps: steps of the whole run, counted over all ranks, resumptions included.
        warmup_steps: steps of the warm-up, fewer than `steps`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def deepspeed_settings(recipe: Recipe, batch_plan: BatchPlan) -> dict[str, Any]:
    """Return the recipe's DeepSpeed JSON with everything that the recipe decides.

    A rank's share of the batch is one engine call, cut into micro_batches inside it, so DeepSpeed itself never
    accumulates gradients.

    Raises:
        InputError: the JSON is unusable, or contradicts the recipe.
    """
    settings = load_deepspeed_config(recipe.deepspeed)
    check_recipe(settings, recipe)
    settings["train_batch_size"] = batch_plan.passages_per_step
    settings["train_micro_batch_size_per_gpu"] = batch_plan.passages_per_rank
    settings["gradient_accumulation_steps"] = 1
    # DeepSpeed clips at 1.0 unless told otherwise, so 0 must be said too.
    settings["gradient_clipping"] = recipe.optimizer.gradient_clipping
    if recipe.precision != "fp32":
        settings[recipe.precision] = {"enabled": True}
    return settings


def parameter_groups(aligner: Aligner, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    """Return AdamW's groups: what is pretrained and what is fresh, each with and without weight decay.

    The text encoder and its pretrained head learn at the text encoder's rate, the graph encoder and a fresh head at
    the graph encoder's. Vectors (biases, normalization, scales) are not decayed. Each group holds its base learning
    rate as `base_learning_rate`; the schedule multiplies it.
    """
    pretrained = ("text.encoder.",) if aligner.text.fresh_head else ("text.",)
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in aligner.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith(pretrained), parameter.ndim > 1), []).append(parameter)
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
    """Return the ZeRO-sharded engine; every rank must call it with equal weights and `deepspeed_settings`."""
    groups = parameter_groups(aligner, recipe.optimizer)
    fused = get_accelerator().device_name() == "cuda"
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=fused)
    # In half precision at stage 0 DeepSpeed makes the moments by a step with zero gradients, which would decay the
    # weights and count: at rate 0 it changes nothing, and its count is taken back.
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    engine, *_ = deepspeed.initialize(model=aligner, optimizer=optimizer, config=settings)
    for state in optimizer.state.values():
        state["step"].zero_()
    set_learning_rates(engine, 1.0)
    return engine


def set_learning_rates(engine: deepspeed.DeepSpeedEngine, factor: float) -> None:
    """Set every group's learning rate to its base times `factor`."""
    for group in engine.optimizer.param_groups:
        group["lr"] = group["base_learning_rate"] * factor
