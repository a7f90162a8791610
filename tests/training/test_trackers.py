"""Trackers named by a recipe: what they receive, runs that they continue, and what happens where they fail."""

import importlib.machinery
import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

from bali_ds.checkpoint.manager import RunProgress
from bali_ds.config import Recipe
from bali_ds.data.sampler import Position
from bali_ds.distributed import Ranks
from bali_ds.errors import InputError
from bali_ds.training.metrics_log import MetricsLog
from bali_ds.training.trackers import check_trackers, open_trackers
from bali_ds.training.trainer import Trainer

MLFLOW_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


def recipe_with(folder, *trackers):
    (folder / "run").mkdir(exist_ok=True)
    values = {"name": "run", "runs": folder, "data": {"graph": "g", "shards": "s"}, "text_encoder": {"path": "e"}}
    return Recipe.model_validate(values | {"steps": 4, "trackers": list(trackers)})


def stand_in(monkeypatch, name, **attributes):
    """Make `import NAME` return a module with these attributes."""
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for key, value in attributes.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def wandb(monkeypatch):
    """What a stand-in for wandb was asked to do."""
    calls = []

    def init(**options):
        calls.append(("init", options))
        return SimpleNamespace(
            id=options["id"] or "new-id",
            define_metric=lambda name, step_metric: calls.append(("define_metric", name, step_metric)),
            log=lambda values: calls.append(("log", values)),
            finish=lambda exit_code: calls.append(("finish", exit_code)),
        )

    stand_in(monkeypatch, "wandb", init=init, Settings=lambda **options: options)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return calls


class Client:
    """Stand-in for the client of MLflow; all clients see the same runs."""

    runs: ClassVar = {}
    experiments: ClassVar = {}

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def create_experiment(self, name):
        self.experiments[name] = SimpleNamespace(experiment_id=f"{name}-id")
        return f"{name}-id"

    def create_run(self, experiment_id, run_name):
        self.runs["r1"] = {"experiment": experiment_id, "name": run_name, "params": {}, "metrics": [], "status": []}
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def update_run(self, run_id, status):
        self.runs[run_id]["status"].append(status)

    def set_terminated(self, run_id, status):
        self.runs[run_id]["status"].append(status)

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100  # the limit of MLflow's servers
        self.runs[run_id]["params"] |= dict(params)
        self.runs[run_id]["metrics"] += metrics


@pytest.fixture
def mlflow(monkeypatch):
    Client.runs, Client.experiments = {}, {}
    stand_in(monkeypatch, "mlflow", MlflowClient=Client)
    param, metric = (lambda *values: values), (lambda key, value, _, step: (key, value, step))
    stand_in(monkeypatch, "mlflow.entities", Param=param, Metric=metric)
    without_variables(monkeypatch, "MLFLOW_EXPERIMENT_NAME", *MLFLOW_LIMITS)
    return Client.runs


def without_variables(monkeypatch, *names):
    """Unset environment variables, and afterwards also those that the test sets."""
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_resumed_run_continues_the_run_of_wandb(tmp_path, wandb):
    recipe = recipe_with(tmp_path, "wandb")
    for first, complete in ((0, False), (2, True)):
        log = MetricsLog(recipe.directory, first, open_trackers(recipe, first))
        log.write(first + 1, {"loss": 0.5})
        log.close(complete=complete)
    assert json.loads((recipe.directory / "trackers.json").read_text()) == {"wandb": "new-id"}
    assert [options["id"] for kind, *rest in wandb if kind == "init" for options in rest] == [None, "new-id"]
    assert wandb[0][1]["project"] == "bali-ds"
    assert wandb[0][1]["config"]["steps"] == 4
    # steps are values: the counter of the library never goes back
    assert [call for call in wandb if call[0] in ("log", "define_metric")] == [
        ("define_metric", "*", "step"), ("log", {"loss": 0.5, "step": 1}),
        ("define_metric", "*", "step"), ("log", {"loss": 0.5, "step": 3}),
    ]  # fmt: skip
    assert [call[1] for call in wandb if call[0] == "finish"] == [1, 0]


def test_a_resumed_run_continues_the_run_of_mlflow(tmp_path, mlflow):
    recipe = recipe_with(tmp_path, "mlflow")
    for first, complete in ((0, False), (2, True)):
        log = MetricsLog(recipe.directory, first, open_trackers(recipe, first))
        log.write(first + 1, {"validation/text_to_graph_r@1": 0.5})
        log.close(complete=complete)
    assert list(mlflow) == ["r1"]
    run = mlflow["r1"]
    assert (run["experiment"], run["name"], run["params"]["batch.passages"]) == ("bali-ds-id", "run", "256")
    assert run["metrics"] == [("validation/text_to_graph_r_at_1", 0.5, 1), ("validation/text_to_graph_r_at_1", 0.5, 3)]
    assert run["status"] == ["KILLED", "RUNNING", "FINISHED"]


@pytest.mark.usefixtures("mlflow")
def test_requests_of_mlflow_have_time_limits_unless_the_user_sets_others(tmp_path, monkeypatch):
    recipe = recipe_with(tmp_path, "mlflow")
    open_trackers(recipe, 0)
    assert {name: os.environ[name] for name in MLFLOW_LIMITS} == MLFLOW_LIMITS
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    open_trackers(recipe, 0)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "120"


def test_a_rollback_leaves_the_trackers_open(tmp_path, wandb, monkeypatch):
    trainer = object.__new__(Trainer)
    trainer.recipe, trainer.ranks, trainer.engine = recipe_with(tmp_path, "wandb"), Ranks(0, 1), None
    trainer.batch_plan, trainer.progress = SimpleNamespace(steps=4), RunProgress(0, Position())
    trainer.checkpoints = SimpleNamespace(restore=lambda _: RunProgress(2, Position()))
    reached = iter([3, 4])

    def train_until_rollback(log):
        last = next(reached)
        for step in range(trainer.progress.step + 1, last + 1):
            log.write(step, {"loss": float(last)})
        trainer.progress = RunProgress(last, Position())
        return last == 4

    monkeypatch.setattr(trainer, "_train_until_rollback", train_until_rollback)
    monkeypatch.setattr(trainer, "_save_last", lambda: wandb.append(("saved",)))
    assert trainer.train() == 4
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 3.0), (2, 3.0), (3, 4.0), (4, 4.0)]
    assert [call[1]["step"] for call in wandb if call[0] == "log"] == [1, 2, 3, 3, 4]
    assert [call for call in wandb if call[0] in ("saved", "finish")] == [("saved",), ("finish", 0)]
    assert sum(call[0] == "init" for call in wandb) == 1
    assert trainer.train() == 4  # nothing is left to train, and no tracker starts
    assert sum(call[0] == "init" for call in wandb) == 1


def test_a_run_whose_last_checkpoint_is_not_saved_is_not_complete_in_its_trackers(tmp_path, wandb):
    trainer = object.__new__(Trainer)
    trainer.recipe, trainer.ranks = recipe_with(tmp_path, "wandb"), Ranks(0, 1)
    trainer.batch_plan, trainer.progress = SimpleNamespace(steps=4), RunProgress(3, Position())
    with pytest.raises(InputError), trainer._metrics_log():
        raise InputError("the disk is full")
    assert wandb[-1] == ("finish", 1)


@pytest.mark.parametrize(("name", "extra"), [("wandb", "wandb"), ("mlflow", "mlflow"), ("tensorboard", "train")])
def test_a_missing_package_is_one_line_with_its_extra(tmp_path, monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, name, None)
    recipe = recipe_with(tmp_path, name)
    expected = rf"^{name} is not installed; install it with: pip install 'bali-ds\[{extra}\]'$"
    with pytest.raises(InputError, match=expected):
        check_trackers(recipe)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(InputError, match=expected):
        open_trackers(recipe, 0)


def test_a_tracker_that_cannot_start_is_one_line(tmp_path, monkeypatch):
    def init(**_options):
        raise RuntimeError("api_key not configured (no-tty).\ncall wandb.login")

    stand_in(monkeypatch, "wandb", init=init, Settings=dict)
    with pytest.raises(InputError, match=r"^trackers: wandb cannot be started: api_key not configured \(no-tty\)\.; "):
        open_trackers(recipe_with(tmp_path, "wandb"), 0)
    (tmp_path / "run/tensorboard").touch()
    with pytest.raises(InputError, match=r"^trackers: tensorboard cannot be started: "):
        open_trackers(recipe_with(tmp_path, "tensorboard"), 0)
    (tmp_path / "run/trackers.json").write_text('{"wandb": 3}')
    with pytest.raises(InputError, match=r"trackers\.json: key wandb: .*; remove it"):
        open_trackers(recipe_with(tmp_path, "wandb"), 0)


def test_a_tracker_that_fails_later_is_one_warning(tmp_path, caplog):
    class Failing:
        run_id = None

        def log(self, *_):
            raise ConnectionError("no answer")

        def close(self, **_):
            raise ConnectionError("no answer")

    log = MetricsLog(tmp_path, 0, {"wandb": Failing()})
    for step in (1, 2):
        log.write(step, {"loss": 1.0})
    log.close(complete=True)
    assert caplog.messages == ["wandb: metrics are dropped while it cannot be written: no answer"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_event_files_of_tensorboard(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = recipe_with(tmp_path, "tensorboard")
    log = MetricsLog(recipe.directory, 0, open_trackers(recipe, 0))
    log.write(3, {"loss": 0.25})
    log.close(complete=True)
    found = events.EventAccumulator(str(recipe.directory / "tensorboard")).Reload().Scalars("loss")
    assert [(each.step, each.value) for each in found] == [(3, 0.25)]
    log = MetricsLog(recipe.directory, 3, open_trackers(recipe, 3))
    for step in (4, 5):
        log.write(step, {"loss": 8.0})
    log.rewind(4)
    log.write(5, {"loss": 0.125})
    log.close(complete=True)
    found = events.EventAccumulator(str(recipe.directory / "tensorboard")).Reload().Scalars("loss")
    assert [(each.step, each.value) for each in found] == [(3, 0.25), (4, 8.0), (5, 0.125)]
    assert not (recipe.directory / "trackers.json").exists()


def test_the_real_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (extra: wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    recipe = recipe_with(tmp_path, "wandb")
    for first in (0, 2):
        log = MetricsLog(recipe.directory, first, open_trackers(recipe, first))
        log.write(first + 1, {"loss": 0.5})
        log.close(complete=first == 2)
    known = json.loads((recipe.directory / "trackers.json").read_text())["wandb"]
    stored = list((recipe.directory / "wandb").glob("offline-run-*"))
    assert len(stored) == 2
    assert all(folder.name.endswith(known) for folder in stored)


@contextmanager
def mlflow_server():
    """The address of a server of MLflow, and the event that makes it take connections and never answer them."""
    silent, ended = threading.Event(), threading.Event()
    run = dict.fromkeys(("run_id", "run_uuid"), "r1") | {"experiment_id": "1", "status": "RUNNING"}
    answers = {
        "experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "bali-ds"}},
        "runs/create": {"run": {"info": run}},
    }

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if silent.is_set():
                ended.wait()
                return
            body = json.dumps(answers.get(self.path.partition("/mlflow/")[2].partition("?")[0], {})).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815 (names of the library)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", silent
        finally:
            ended.set()
            server.shutdown()


@pytest.mark.timeout(300)
def test_a_run_goes_on_without_an_mlflow_server_that_does_not_answer(tmp_path, monkeypatch, caplog):
    pytest.importorskip("mlflow", reason="mlflow is not installed (extra: mlflow)")
    without_variables(monkeypatch, "MLFLOW_EXPERIMENT_NAME", *MLFLOW_LIMITS)
    recipe = recipe_with(tmp_path, "mlflow")
    with mlflow_server() as (address, silent):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        log = MetricsLog(recipe.directory, 0, open_trackers(recipe, 0))
        log.write(1, {"loss": 0.5})
        assert not caplog.messages
        silent.set()
        begin = time.monotonic()
        log.write(2, {"loss": 0.5})
        seconds = time.monotonic() - begin
        log.close(complete=True)
    assert 10 < seconds < 120  # two attempts of 10 s, and the pause between them
    warnings = [each for each in caplog.messages if each.startswith("mlflow: ")]  # its client has warnings of its own
    assert len(warnings) == 1
    assert warnings[0].startswith("mlflow: metrics are dropped while it cannot be written: ")
    assert len((recipe.directory / "metrics.jsonl").read_text().splitlines()) == 2


def test_the_real_mlflow_in_a_folder(tmp_path, monkeypatch):
    library = pytest.importorskip("mlflow", reason="mlflow is not installed (extra: mlflow)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    recipe = recipe_with(tmp_path, "mlflow")
    for first in (0, 2):
        log = MetricsLog(recipe.directory, first, open_trackers(recipe, first))
        log.write(first + 1, {"validation/text_to_graph_r@1": 0.5})
        log.close(complete=first == 2)
    known = json.loads((recipe.directory / "trackers.json").read_text())["mlflow"]
    client = library.MlflowClient()
    history = client.get_metric_history(known, "validation/text_to_graph_r_at_1")
    assert [(each.step, each.value) for each in history] == [(1, 0.5), (3, 0.5)]
    run = client.get_run(known)
    assert (run.info.status, run.data.params["batch.passages"]) == ("FINISHED", "256")
