"""The command `train`: recipes by name, the sample built where it is missing, and what the launcher is given."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bali_ds.cli import launcher, main
from bali_ds.config import load_recipe
from bali_ds.doctor.deepspeed_config import load_deepspeed_config
from bali_ds.errors import InputError
from bali_ds.shipped_files import RECIPES, SHIPPED, find_recipe
from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (*launcher._RANK_VARIABLES, "MASTER_PORT", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return tmp_path


@pytest.fixture
def launched(monkeypatch):
    """The arguments of DeepSpeed's launcher, which is not started."""
    calls = []
    monkeypatch.setattr(launcher, "_launch", lambda arguments: calls.append(arguments) or 0)
    return calls


def test_shipped_recipes_and_deepspeed_files_have_names(empty_folder):
    assert find_recipe("sample") == find_recipe("launch/recipes/sample.yaml") == RECIPES / "sample.yaml"
    assert find_recipe("ablations/joint") == RECIPES / "ablations/joint.yaml"
    recipe = load_recipe("sample")
    assert Path(recipe.text_encoder.path) == REPOSITORY / "shards/sample/encoder"
    assert recipe.evaluation.linking.queries.is_file()
    stage = load_deepspeed_config(recipe.deepspeed)["zero_optimization"]["stage"]
    assert stage == json.loads((SHIPPED / "ds_configs/zero1.json").read_text())["zero_optimization"]["stage"]
    (empty_folder / "sample").write_text("name: own")
    assert find_recipe("sample") == Path("sample")
    with pytest.raises(InputError, match="did you mean medmentions"):
        find_recipe("medmention")
    with pytest.raises(InputError, match="did you mean zero3_offload"):
        load_deepspeed_config(Path("zero3offload"))


@pytest.mark.parametrize("file", sorted(RECIPES.rglob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_recipe_names_what_is_shipped_or_what_the_user_builds(file):
    recipe = load_recipe(file)
    load_deepspeed_config(recipe.deepspeed)
    for built in (recipe.data.graph, Path(recipe.data.shards)):
        assert built.resolve().is_relative_to(REPOSITORY / "shards/built")


def test_the_sample_is_built_and_the_ranks_get_the_whole_command(empty_folder, launched, capsys):
    assert main(["train", "sample", "steps=4", "--ranks", "2", "name=own", "--resume", "never"]) == 75
    for part in ("graph/manifest.json", "shards/index.json"):
        assert (empty_folder / "shards/built/sample" / part).is_file()
    assert "bali-ds graph build --rrf" in capsys.readouterr().out
    command = launched[0]
    assert command[:4] == ["--num_gpus", "2", "--module", "bali_ds.cli.train"]
    assert command[4:] == ["--config", "sample", "--resume", "never", "steps=4", "name=own"]
    (empty_folder / "runs/own").mkdir(parents=True)
    (empty_folder / "runs/own/complete.json").write_text("{}")
    assert main(["train", "--config", "sample", "name=own", "--ranks", "2"]) == 0
    assert "graph build" not in capsys.readouterr().out


def test_a_hostfile_needs_the_address_of_its_first_host(empty_folder, launched, capsys):
    (empty_folder / "hosts").write_text("node01 slots=8\nnode02 slots=8\n")
    (empty_folder / "own.yaml").write_text((RECIPES / "medmentions.yaml").read_text())
    assert main(["train", "own.yaml", "--hostfile", "hosts"]) == 2
    assert "pass --master-addr with an address of node01" in capsys.readouterr().err
    main(["train", "own.yaml", "--hostfile", "hosts", "--master-addr", "10.0.0.1"])
    assert launched[0][:6] == ["--hostfile", "hosts", "--master_addr", "10.0.0.1", "--module", "bali_ds.cli.train"]


def test_hosts_choose_their_device_themselves(empty_folder, launched, capsys):
    (empty_folder / "hosts").write_text("node01 slots=8\n")
    (empty_folder / "own.yaml").write_text((RECIPES / "medmentions.yaml").read_text())
    assert main(["train", "own.yaml", "--hostfile", "hosts", "--device", "cpu"]) == 2
    assert "--device: hosts choose their device themselves; write DS_ACCELERATOR=cpu" in capsys.readouterr().err
    assert not launched


@pytest.fixture
def on_gpus(empty_folder, monkeypatch):
    """Train on a machine with four GPUs; returns the exit status."""
    monkeypatch.setattr(launcher, "choose_device", lambda device: 0 if device == "cpu" else 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (empty_folder / "own.yaml").write_text((RECIPES / "medmentions.yaml").read_text())
    return lambda *options: main(["train", "own.yaml", "evaluation.when=separate", *options])


@pytest.mark.parametrize(
    ("options", "visible", "left"),
    [
        (["--ranks", "2"], "2,3,0", "2,3"),
        (["--ranks", "3"], " 3, 1 ,0", "3,1,0"),
        ([], "0,1,2,3", "0,1,2,3"),
    ],
)
def test_ranks_take_the_first_of_the_visible_gpus(on_gpus, launched, monkeypatch, options, visible, left):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert on_gpus(*options) == 0
    assert launched[0][:2] == ["--module", "bali_ds.cli.train"]  # the launcher ignores the variable beside --num_gpus
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


def test_uuids_of_gpus_are_refused(on_gpus, launched, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937,GPU-1d2c3b4a")
    assert on_gpus("--ranks", "2") == 2
    assert "DeepSpeed's launcher needs numbers of GPUs, not UUIDs" in capsys.readouterr().err
    assert not launched


def test_without_the_variable_the_launcher_takes_as_many_gpus_as_ranks(on_gpus, launched, monkeypatch, capsys):
    assert on_gpus() == on_gpus("--ranks", "2") == 0
    assert [arguments[:2] for arguments in launched] == [["--num_gpus", "4"], ["--num_gpus", "2"]]
    assert on_gpus("--ranks", "5") == 2
    assert "--ranks 5: this machine has 4 GPUs" in capsys.readouterr().err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937")
    assert on_gpus("--ranks", "5", "--device", "cpu") == 0  # CPU ranks need no GPUs, whatever they are called
    assert launched[-1][:2] == ["--num_gpus", "5"]


def test_a_gpu_that_is_not_there_is_refused(on_gpus, launched, monkeypatch, capsys):
    monkeypatch.setattr(launcher, "choose_device", lambda _: 0)
    assert on_gpus("--device", "cuda") == 2
    assert "--device cuda: torch finds no GPU on this machine" in capsys.readouterr().err
    assert not launched


def test_several_tasks_of_srun_are_refused_and_one_is_not(on_gpus, launched, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert on_gpus() == 2
    assert "several tasks of srun would start a job each; submit launch/slurm.sbatch" in capsys.readouterr().err
    assert not launched
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert on_gpus() == 0
    assert len(launched) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_an_interruption_though_the_launcher_for_several_hosts_handles_it(monkeypatch, number):
    """DeepSpeed's launcher replaces the handlers where it uses pdsh, and ends with 1 as after a failure."""

    def runner_main(arguments):
        if arguments[-1] != "fails":
            signal.signal(number, lambda *_: sys.exit(1))
            os.kill(os.getpid(), number)
        sys.exit(1)

    monkeypatch.setattr("deepspeed.launcher.runner.main", runner_main)
    monkeypatch.setenv("MASTER_PORT", "1")
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert launcher._launch(["--hostfile", "hosts"]) == 75
        assert launcher._launch(["fails"]) == 1
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)


def test_the_readme_lists_the_recipes_that_ship():
    text = (REPOSITORY / "README.md").read_text()
    assert [file.stem for file in RECIPES.glob("*.yaml") if f"`{file.stem}`" not in text] == []


@pytest.mark.parametrize(
    ("launched_with", "when", "complete", "status"),
    [
        (0, "after", False, 75),
        (0, "after", True, 0),
        (0, "separate", False, 0),
        (0, "never", False, 0),
        (3, "after", False, 3),
        (75, "separate", False, 75),
    ],
)
def test_a_launcher_that_says_0_is_believed_where_the_run_is_complete(
    empty_folder, monkeypatch, launched_with, when, complete, status
):
    monkeypatch.setattr(launcher, "_launch", lambda _: launched_with)
    (empty_folder / "own.yaml").write_text((RECIPES / "medmentions.yaml").read_text())
    if complete:
        (empty_folder / "runs/own").mkdir(parents=True)
        (empty_folder / "runs/own/complete.json").write_text("{}")
    assert main(["train", "own.yaml", "name=own", "--ranks", "2", f"evaluation.when={when}"]) == status


@pytest.mark.timeout(120)
def test_a_process_that_srun_started_is_a_rank(empty_folder, monkeypatch):
    seen = []
    monkeypatch.setattr("bali_ds.cli.train.run_process", seen.append)
    monkeypatch.setenv("RANK", "1")
    main(["train", "sample", "steps=4"])
    assert seen == [["--config", "sample", "--resume", "auto", "steps=4"]]
    assert not (empty_folder / "shards").exists()


@pytest.mark.timeout(120)
def test_the_version_is_printed():
    done = subprocess.run([sys.executable, "-m", "bali_ds", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("bali-ds 0.")
