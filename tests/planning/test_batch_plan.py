import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bali_ds.config import Recipe
from bali_ds.errors import InputError
from bali_ds.planning.batch_plan import plan_batches


def recipe(**values):
    fixed = {"name": "r", "data": {"graph": "g", "shards": "s"}, "text_encoder": {"path": "m"}}
    return Recipe.model_validate(fixed | values)


def test_numbers_of_the_method():
    """BALI's own run: 1.5 M sentences, 256 a step, 65,000 steps are 11.1 epochs."""
    batch_plan = plan_batches(recipe(batch={"passages": 256, "micro_batches": 2}, steps=65_000), 8, 1_500_000)
    assert (batch_plan.passages_per_rank, batch_plan.passages_per_micro_batch) == (32, 16)
    assert batch_plan.steps_per_epoch == 5859
    assert batch_plan.dropped_passages == 1_500_000 - 5859 * 256
    assert batch_plan.epochs == pytest.approx(11.09, abs=0.01)
    assert batch_plan.warmup_steps == 3250


@pytest.mark.parametrize(("epochs", "passages", "steps"), [(0.01, 100, 1), (1, 1000, 100), (2.5, 999, 248)])
def test_epochs_become_whole_steps(epochs, passages, steps):
    assert plan_batches(recipe(batch={"passages": 10}, epochs=epochs), 2, passages).steps == steps


@settings(deadline=None)
@given(batch=st.integers(1, 5000), ranks=st.integers(1, 3000), micro_batches=st.integers(1, 8))
def test_a_batch_divides_or_is_refused_with_sizes_that_do(batch, ranks, micro_batches):
    given_recipe = recipe(batch={"passages": batch, "micro_batches": micro_batches}, steps=5)
    try:
        batch_plan = plan_batches(given_recipe, ranks, 100_000)
    except InputError as error:
        assert batch % (ranks * micro_batches)
        for size in str(error).rsplit("use ", 1)[1].split(" or "):
            other = given_recipe.model_copy(
                update={"batch": given_recipe.batch.model_copy(update={"passages": int(size)})}
            )
            assert plan_batches(other, ranks, 100_000).passages_per_step == int(size)
    else:
        assert batch_plan.passages_per_micro_batch * micro_batches * ranks == batch


def test_more_than_the_data_is_refused():
    with pytest.raises(InputError, match=r"batch\.passages: 64 is larger than the training split of 50 passages"):
        plan_batches(recipe(batch={"passages": 64}, steps=1), 1, 50)
