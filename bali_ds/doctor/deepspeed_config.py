"""Strict reader of DeepSpeed JSON files: what DeepSpeed would silently ignore or override is an error here."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bali_ds.config import Recipe
from bali_ds.doctor.deepspeed_keys import FROM_RECIPE, KNOWN, QUANTIZED, REMOVED, REMOVED_ZERO, UNSUPPORTED, ZERO, Kind
from bali_ds.errors import InputError
from bali_ds.files import LARGEST_TEXT, read_json
from bali_ds.shipped_files import find_deepspeed_config

_KINDS: dict[Kind, tuple[tuple[type, ...], str]] = {
    "switch": ((bool,), "true or false"),
    "count": ((int, float), "a whole number"),
    "number": ((int, float), "a number"),
    "text": ((str,), "a string"),
    "block": ((dict,), "an object"),
}


def load_deepspeed_config(path: Path) -> dict[str, Any]:
    """Return the DeepSpeed configuration of a JSON file, without the keys that the trainer sets from the recipe.

    Args:
        path: the file, or the bare name of one in ds_configs, such as "zero1".

    Raises:
        InputError: the file does not exist or is not valid JSON (with the line), or holds an unknown key (with the
            nearest known one), a feature that DeepSpeed has removed, a key that belongs to the recipe, a value of the
            wrong type, or settings that contradict each other.
    """
    path = find_deepspeed_config(path)
    values = read_json(path, limit=LARGEST_TEXT)
    if not isinstance(values, dict):
        raise InputError(f"{path}: is not a JSON object")
    for key, value in values.items():
        if key in REMOVED:
            raise InputError(f"{path}: {key}: was removed from DeepSpeed: {REMOVED[key]}")
        if key in UNSUPPORTED:
            raise InputError(f"{path}: {key}: {UNSUPPORTED[key]}")
        if key in FROM_RECIPE:
            raise InputError(f"{path}: {key}: set {FROM_RECIPE[key]} in the recipe instead")
        _check(f"{path}: {key}", key, value, KNOWN)
    zero = values.get("zero_optimization", {})
    for key, value in zero.items():
        where = f"{path}: zero_optimization.{key}"
        if key in REMOVED_ZERO:
            raise InputError(f"{where}: was removed from DeepSpeed: {REMOVED_ZERO[key]}")
        if key in QUANTIZED and value is not False:
            raise InputError(f"{where}: {QUANTIZED[key]}")
        _check(where, key, value, ZERO)
    _check_combinations(str(path), values, zero)
    return values


def check_recipe(values: Mapping[str, Any], recipe: Recipe) -> None:
    """Check that a DeepSpeed configuration does not contradict the recipe.

    Raises:
        InputError: it does.
    """
    zero = values.get("zero_optimization", {})
    origin = f"{recipe.deepspeed}"
    if recipe.optimizer.gradient_clipping and zero.get("compute_grad_norm") is False:
        raise InputError(
            f"{origin}: zero_optimization.compute_grad_norm: gradient clipping needs the norm; "
            "remove it or set optimizer.gradient_clipping=0"
        )
    accumulation = values.get("data_types", {}).get("grad_accum_dtype")
    if not zero.get("stage", 0) and accumulation not in (None, recipe.precision):
        raise InputError(
            f"{origin}: data_types.grad_accum_dtype: ZeRO stage 0 accumulates gradients in the recipe's precision "
            f"({recipe.precision}); remove it or use a higher stage"
        )


def without_buckets(values: Mapping[str, Any], *, ranks: int) -> dict[str, Any]:
    """Return a DeepSpeed configuration for a number of ranks: a single rank sends no gradients.

    At stages 1 and 2 DeepSpeed copies every gradient into the buckets that it sends and waits for the device at the end
    of the backward pass. For one rank both are switched off, whatever the file says; with offloading DeepSpeed makes
    buckets all the same.
    """
    zero = values.get("zero_optimization", {})
    if ranks > 1 or zero.get("stage", 0) not in (1, 2):
        return dict(values)
    return {**values, "zero_optimization": {**zero, "overlap_comm": False, "contiguous_gradients": False}}


def _check(where: str, key: str, value: object, known: Mapping[str, Kind]) -> None:
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        hint = f"did you mean {nearest[0]}?" if nearest else "DeepSpeed 0.19.8 has no such setting; remove it"
        raise InputError(f"{where}: no such key; {hint}")
    types, expected = _KINDS[known[key]]
    fits = isinstance(value, types) and (isinstance(value, bool) == (bool in types))
    if known[key] == "count":
        fits = fits and 0 <= value < 2**63 and value == int(value)  # type: ignore[operator,call-overload]
    if not fits:
        raise InputError(f"{where}: must be {expected}, got {json.dumps(value)}")


def _check_combinations(origin: str, values: Mapping[str, Any], zero: Mapping[str, Any]) -> None:
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise InputError(f"{origin}: zero_optimization.stage: must be 0, 1, 2 or 3, got {stage}")
    for key in ("offload_optimizer", "offload_param"):
        if (device := zero.get(key, {}).get("device", "none")) not in ("none", "cpu"):
            raise InputError(f"{origin}: zero_optimization.{key}.device: must be none or cpu, got {json.dumps(device)}")
    if stage < 3 and zero.get("offload_param", {}).get("device", "none") != "none":
        raise InputError(f"{origin}: zero_optimization.offload_param: needs stage 3, but the stage is {stage}")
    if zero.get("offload_optimizer", {}).get("device", "none") != "none":
        if stage == 0:
            raise InputError(f"{origin}: zero_optimization.offload_optimizer: needs stage 1, 2 or 3")
        if values.get("zero_force_ds_cpu_optimizer", True):
            raise InputError(
                f"{origin}: zero_force_ds_cpu_optimizer: set it to false; the optimizer is the recipe's AdamW"
            )
    for key in values.get("checkpoint", {}):
        if key != "tag_validation":
            # other writers do not report failures, and their files are not safe to read
            raise InputError(f"{origin}: checkpoint.{key}: other checkpoint writers are not supported; remove it")
    if "datastates_ckpt" in values:
        raise InputError(f"{origin}: datastates_ckpt: other checkpoint writers are not supported; remove it")
    if values.get("gradient_allreduce_op", "mean") != "mean":
        raise InputError(f"{origin}: gradient_allreduce_op: must be mean; losses are averages over all ranks")
