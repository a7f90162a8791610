"""Goes through the passes of a step that went wrong once more, in one process, and says where the numbers end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bali_ds.checkpoint.marker import checkpoint_step, complete_checkpoints
from bali_ds.checkpoint.zero_reader import read_checkpoint
from bali_ds.config import Recipe, load_recipe
from bali_ds.data.batch import Batch
from bali_ds.data.loader import Loader
from bali_ds.data.sampler import Position
from bali_ds.data.settings import StreamSettings
from bali_ds.errors import InputError
from bali_ds.files import read_json
from bali_ds.model.aligner import Aligner
from bali_ds.model.build_model import DTYPES, build_aligner
from bali_ds.training.failures import failure_path
from bali_ds.training.run_directory import RunData


def replay(run: Path, step: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compute the loss of a refused step again, with the newest checkpoint before it and the samples of all ranks.

    Dropout is off: it differed from rank to rank.

    Args:
        run: the run's directory.
        step: its number, as in the message and in `failures/`.
        overrides: `key=value` changes of the run's recipe; a `pipe:` command as shards is run only if named here.

    Returns:
        {"step", "checkpoint": step of the weights, "loss": by part, "module": the first whose output is no number,
        "parameters": whose gradient is none, "ranks": as written when it happened}.

    Raises:
        InputError: no such failure or no checkpoint before it, or the recipe names shards that a run directory may not.
    """
    path = failure_path(run, step)
    if not path.is_file():
        numbers = [each.stem.removeprefix("step-") for each in path.parent.glob("step-*.json")]
        there = ", ".join(map(str, sorted(int(each) for each in numbers if each.isdecimal())))
        raise InputError(f"{path}: does not exist; steps that were refused: {there or 'none'}")
    failure = read_json(path)
    recipe = load_recipe(run / "recipe.yaml", overrides)
    data = RunData.open(recipe)
    taken, aligner = _aligner(recipe, data, run / "checkpoints", step)
    micro_batches = _samples(recipe, data, failure)
    found: dict[str, str] = {}
    with _first_unsound(aligner, found):
        loss, parts = aligner(micro_batches)
    loss.backward()
    return {
        "step": step,
        "checkpoint": taken,
        "loss": {name: float(value) for name, value in parts.items() if value.numel() == 1},
        "module": found.get("module"),
        "parameters": [
            name
            for name, parameter in aligner.named_parameters()
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ],
        "ranks": failure["ranks"],
    }


def _aligner(recipe: Recipe, data: RunData, checkpoints: Path, step: int) -> tuple[int, Aligner]:
    complete = [(checkpoint_step(path), path) for path in complete_checkpoints(checkpoints)]
    before = [(taken, path) for taken, path in complete if taken < step]
    if not before:
        raise InputError(f"{checkpoints}: holds no checkpoint from before step {step}")
    aligner = build_aligner(recipe, 2 * data.graph.num_relations, data.shards)
    taken, newest = before[0]
    stored = read_checkpoint(newest)
    aligner.load_state_dict({name: tensor.tensor() for name, tensor in stored.items()}, strict=False)
    return taken, aligner.to(DTYPES[recipe.precision]).eval()


def _samples(recipe: Recipe, data: RunData, failure: dict[str, Any]) -> list[Batch]:
    """The micro-batches of all ranks, as they were."""
    micro_batches: list[Batch] = []
    for rank in failure["ranks"]:
        with Loader(
            data.shards,
            data.graph,
            StreamSettings.of(recipe),
            global_batch=recipe.batch.passages,
            micro_batches=recipe.batch.micro_batches,
            rank=rank["rank"],
            world_size=len(failure["ranks"]),
            start=Position(**failure["start"]),
        ) as loader:
            micro_batches += next(loader).micro_batches
    return micro_batches


@contextmanager
def _first_unsound(aligner: Aligner, found: dict[str, str]) -> Iterator[None]:
    """Note the name of the first module of all that gives out something that is no number."""

    def note(name: str) -> Any:
        def hook(_module: torch.nn.Module, _given: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple) else [output]
            if any(isinstance(each, torch.Tensor) and not torch.isfinite(each.detach()).all() for each in tensors):
                found.setdefault("module", name)

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in aligner.named_modules() if name]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
