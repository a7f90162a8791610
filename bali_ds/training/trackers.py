"""Trackers of a run's metrics: TensorBoard, Weights & Biases and MLflow, each imported only where a recipe names it."""

import importlib.util
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import BaseModel

from bali_ds.config import Recipe
from bali_ds.errors import InputError, first_line, missing_package, system_error
from bali_ds.files import read_json, write_json
from bali_ds.parsing import flattened, validated
from bali_ds.terminal import print_progress

RUN_IDS = "trackers.json"
"""File of a run directory with the id of the run in each tracker that keeps runs on a server."""
_PROJECT = "bali-ds"
_LONGEST_PARAMETER = 500
_PARAMETERS_AT_ONCE = 100


class Tracker(Protocol):
    """Where metrics of a run are shown.

    Attributes:
        run_id: id of the run on its server; None where there is none.
    """

    run_id: str | None

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step."""
        ...

    def rewind(self, step: int) -> None:
        """Drop what was recorded after a step, where the tracker cannot take steps that repeat."""
        ...

    def close(self, *, complete: bool) -> None:
        """Send what is not sent yet, and end the run or, if it is not complete, interrupt it."""
        ...


class TensorBoardTracker:
    """Event files in the run's folder `tensorboard`."""

    def __init__(self, recipe: Recipe, run_id: str | None, first_step: int) -> None:  # noqa: ARG002 (has no runs)
        from torch.utils.tensorboard import SummaryWriter

        self.run_id: str | None = None
        self._open = partial(SummaryWriter, str(recipe.directory / "tensorboard"))
        self._writer = self._open(purge_step=first_step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def rewind(self, step: int) -> None:
        """Go on in another file, whose first event tells TensorBoard to drop the steps from there on."""
        self._writer.close()
        self._writer = self._open(purge_step=step + 1)

    def close(self, *, complete: bool) -> None:  # noqa: ARG002 (event files have no state)
        """Flush and close the file."""
        self._writer.close()


class WandbTracker:
    """A run of Weights & Biases; project, entity and mode are those of its environment variables."""

    def __init__(self, recipe: Recipe, run_id: str | None, first_step: int) -> None:  # noqa: ARG002 (steps are values)
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=recipe.name,
            id=run_id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(recipe.directory)),
            config=recipe.model_dump(mode="json"),
            settings=wandb.Settings(console="off"),
        )
        self.run_id: str | None = self._run.id
        # the step counter of the library never goes back, but a run that resumes repeats steps
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step."""
        self._run.log({**values, "step": step})

    def rewind(self, step: int) -> None:
        """Do nothing: steps may repeat."""

    def close(self, *, complete: bool) -> None:
        """Send what is not sent yet and end the run."""
        self._run.finish(exit_code=0 if complete else 1)


class MlflowTracker:
    """A run of MLflow; tracking server and experiment are those of its environment variables."""

    def __init__(self, recipe: Recipe, run_id: str | None, first_step: int) -> None:  # noqa: ARG002 (steps may repeat)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        # by default a server that does not answer would stop training for ten minutes at every line of metrics
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        self._client = MlflowClient()
        if run_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            run_id = str(self._client.create_run(experiment, run_name=recipe.name).info.run_id)
            values = recipe.model_dump(mode="json")
            values["data"]["shards"] = str(values["data"]["shards"])  # locations are no valid names of parameters
            parameters = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in flattened(values)]
            for start in range(0, len(parameters), _PARAMETERS_AT_ONCE):
                self._client.log_batch(run_id, params=parameters[start : start + _PARAMETERS_AT_ONCE])
        else:
            self._client.update_run(run_id, status="RUNNING")
        self.run_id: str | None = run_id

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of a step; @ is not allowed in the names of MLflow's metrics."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name.replace("@", "_at_"), float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def rewind(self, step: int) -> None:
        """Do nothing: steps may repeat."""

    def close(self, *, complete: bool) -> None:
        """End the run."""
        self._client.set_terminated(self.run_id, status="FINISHED" if complete else "KILLED")


class _Kind(NamedTuple):
    """How a tracker is opened, and the extra in setup.py that installs its package."""

    open: Callable[[Recipe, str | None, int], Tracker]
    extra: str


_KINDS = {  # by the name of the package
    "tensorboard": _Kind(TensorBoardTracker, "train"),
    "wandb": _Kind(WandbTracker, "wandb"),
    "mlflow": _Kind(MlflowTracker, "mlflow"),
}


class _RunIds(BaseModel):
    wandb: str | None = None
    mlflow: str | None = None


def check_trackers(recipe: Recipe) -> None:
    """Check that the packages of a recipe's trackers are installed, without importing them.

    Raises:
        InputError: one is not; the message names the extra to install.
    """
    for name in recipe.trackers:
        if importlib.util.find_spec(name) is None:
            raise missing_package(ModuleNotFoundError(name=name), _KINDS[name].extra)


def open_trackers(recipe: Recipe, first_step: int) -> dict[str, Tracker]:
    """Return the recipe's trackers by name; those that keep runs on a server continue the run of this directory.

    The ids of these runs are kept in `trackers.json`, so that a resumed run does not start another one there.

    Args:
        recipe: the run.
        first_step: steps taken before.

    Raises:
        InputError: a package is missing, or a tracker cannot be started.
    """
    file = recipe.directory / RUN_IDS
    known = _run_ids(file)
    opened: dict[str, Tracker] = {}
    for name in dict.fromkeys(recipe.trackers):
        if name != "tensorboard":
            print_progress(f"starting {name}")  # its server may take seconds to answer
        try:
            tracker = _KINDS[name].open(recipe, known.get(name), first_step)
        except ModuleNotFoundError as error:
            raise missing_package(error, _KINDS[name].extra) from error
        except Exception as error:  # the libraries raise errors of several kinds
            for other in opened.values():
                with suppress(Exception):
                    other.close(complete=False)
            reason = system_error(error) or first_line(error)
            raise InputError(
                f"trackers: {name} cannot be started: {reason}; fix it, or remove it from the recipe's trackers"
            ) from error
        opened[name] = tracker
        if tracker.run_id and tracker.run_id != known.get(name):
            known[name] = tracker.run_id
            write_json(file, known)
    return opened


def _run_ids(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    ids = validated(_RunIds, read_json(file), str(file), "remove it to start new runs in the trackers")
    return ids.model_dump(exclude_none=True)
