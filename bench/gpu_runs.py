"""Parts of gpu.py that train in processes of their own: do runs end, resume and repeat, do ZeRO stages agree."""

from typing import Any

from bench.gpu_bench import FASTEST, ROOT, TINY, Bench, Figures


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
