"""A plan as text."""

from bali_ds.config import Recipe
from bali_ds.preflight.plan import Plan

_COLUMNS = (
    "weights", "names", "gathered", "master", "optimiser", "gradients", "buckets", "activations", "peak", "offloaded",
)  # fmt: skip


def plan_text(plan: Plan, recipe: Recipe) -> str:
    """Return the plan for reading: numbers first, then memory and traffic of every ZeRO stage."""
    numbers = plan.arithmetic
    total = sum(plan.parameters.values())
    parts = ", ".join(f"{count / 1e6:.1f} M {name}" for name, count in plan.parameters.items())
    rows = {
        "model": f"{total / 1e6:.1f} M parameters ({parts}), {recipe.precision}",
        "batch": f"{numbers.passages_per_step:,} passages = {numbers.ranks:,} ranks x {numbers.chunks} chunks x "
        f"{numbers.passages_per_chunk:,}",
        "data": f"{numbers.training_passages:,} passages, {numbers.steps_per_epoch:,} steps an epoch, "
        f"{numbers.left_out:,} passages left out of each",
        "length": f"{numbers.steps:,} steps = {numbers.epochs:.2f} epochs, the first {numbers.warmup_steps:,} warm up",
        "chunk": f"{plan.positions:,} token positions (passages and names, padded), {plan.views:,} text-graph pairs",
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
