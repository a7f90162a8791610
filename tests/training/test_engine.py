import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from bali_ds.training.engine import learning_rate_factor


@pytest.mark.parametrize(("steps", "warmup_steps"), [(1, 0), (10, 0), (100, 5), (1000, 999)])
def test_equals_the_schedule_of_transformers(steps, warmup_steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, warmup_steps, steps)
    for step in range(steps):
        if step < warmup_steps:
            assert learning_rate_factor(step, steps=steps, warmup_steps=warmup_steps) == (step + 1) / warmup_steps
        else:
            expected = optimizer.param_groups[0]["lr"]
            assert learning_rate_factor(step, steps=steps, warmup_steps=warmup_steps) == pytest.approx(expected)
        optimizer.step()
        theirs.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
