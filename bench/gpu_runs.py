"""Parts of gpu.py that train: do runs end, resume and repeat, do ZeRO stages agree, is the planned memory right."""

from typing import Any

from bali_ds.planning.run_plan import plan
from bench.gpu_bench import BERT_BASE, BERT_LARGE, ROOT, TINY, Bench, Figures

FASTEST = {"compile": None}  # as recipes have it: fused layers on a GPU


def training(bench: Bench) -> Figures:
    """Five steps of the sample, then a run that its stop file ends and that resumes: exit statuses and losses."""
    as_used: dict[str, Any] = {"validation": {"passages": 32}}
    if bench.device == "cuda":
        as_used |= {"precision": "bf16", "text_encoder": FASTEST}
    whole = bench.recipe("whole", TINY, **as_used)
    status, losses, output = bench.train(whole)
    assert status == 0, output[-2000:]
    assert len(losses) == whole.steps, losses
    stopped = bench.recipe("stopped", TINY, steps=40, **as_used)
    first, before, output = bench.train(stopped, stop_after=3)
    assert first == 75, output[-2000:]
    second, after, output = bench.train(stopped)
    assert second == 0, output[-2000:]
    assert after[: len(before)] == before, "the resumed run rewrote its past"
    return {"losses": losses, "statuses": [status, first, second], "resumed_after": len(before)}


def stages(bench: Bench) -> Figures:
    """ZeRO 0 to 3 take the same steps."""
    still = {"dropout": 0.0}
    recipes = [
        bench.recipe(f"zero{stage}", TINY, deepspeed=ROOT / f"ds_configs/zero{stage}.json", text_encoder=still)
        for stage in range(4)
    ]
    losses = {}
    for recipe, (status, found, output) in zip(recipes, bench.train_all(recipes), strict=True):
        assert status == 0, output[-2000:]
        losses[recipe.name] = found
        worst = max(abs(a / b - 1) for a, b in zip(found, losses["zero0"], strict=True))
        assert worst < 1e-4, f"{recipe.name} is off by {worst:.1e}"
    return {"losses": losses}


def repeats(bench: Bench) -> Figures:
    """With `deterministic` two runs in bfloat16 take the same steps bit for bit; without, how far they are apart."""
    precision = "bf16" if bench.device == "cuda" else "fp32"
    recipes = [
        bench.recipe(
            f"repeat-{number}-{deterministic}",
            TINY,
            deterministic=deterministic,
            precision=precision,
            text_encoder=FASTEST,
        )
        for deterministic in (True, False)
        for number in (1, 2)
    ]
    runs = bench.train_all(recipes)
    for status, _, output in runs:
        assert status == 0, output[-2000:]
    first, second, third, fourth = (losses for _, losses, _ in runs)
    assert first == second, (first, second)
    return {"losses": first, "difference_without": max(abs(a - b) for a, b in zip(third, fourth, strict=True))}


def memory(bench: Bench) -> Figures:
    """What `bali-ds plan` says of a rank's memory against the peak of real steps, BERT-base and BERT-large."""
    large = TINY if bench.small else BERT_LARGE
    passages = 16 if bench.small else 256
    recipes = [
        bench.recipe(
            "base-zero1", TINY if bench.small else BERT_BASE, batch={"passages": passages}, steps=3,
            text_encoder=FASTEST,
        ),
        bench.recipe(
            "large-zero2-micro-batches", large, batch={"passages": passages, "micro_batches": 2}, steps=3,
            text_encoder=FASTEST,
        ),
        bench.recipe(
            "large-zero3-checkpointing", large, batch={"passages": passages}, steps=3,
            text_encoder={"gradient_checkpointing": True},
        ),
    ]  # fmt: skip
    recipes = [
        recipe.model_copy(update={"precision": "bf16", "deepspeed": ROOT / f"ds_configs/zero{stage}.json"})
        for recipe, stage in zip(recipes, (1, 2, 3), strict=True)
    ]
    rows = {}
    for recipe, (status, _, output) in zip(recipes, bench.train_all(recipes), strict=True):
        assert status == 0, output[-2000:]
        made = plan(recipe, ranks=1, on_gpu=bench.device == "cuda")
        planned = made.memory[made.stage].peak
        measured = int(output.rpartition("PEAK ")[2].split()[0])
        rows[recipe.name] = {
            "planned": planned,
            "measured": measured,
            "error": planned / measured - 1 if measured else 0,
        }
    return {"rows": rows}
