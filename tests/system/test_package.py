"""The wheel, built from the sdist, installed and used in an empty folder with an empty home: train, link, encode."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution of the files that git knows."""
    folder = tmp_path_factory.mktemp("sdist")
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=REPOSITORY, text=True).split("\0")
    for name in filter(None, names):
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / "tree" / name)
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(folder)]
    subprocess.run(command, cwd=folder / "tree", check=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def installed(sdist, tmp_path_factory):
    """Environment variables of an installation: the wheel alone is new, its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, sdist]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    site = folder / f"venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    # a .pth file adds a folder, but not what the .pth files in it add: the editable install is not seen
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = folder / "venv/bin/python"
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", "--no-index", "--force-reinstall", wheel], check=True
    )
    (folder / "home").mkdir()
    path = f"{folder}/venv/bin:/usr/bin:/bin"
    return {"PATH": path, "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | {
        name: value for name, value in os.environ.items() if name in ("LD_LIBRARY_PATH", "TMPDIR")
    }


def test_the_sdist_holds_what_the_wheel_ships(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("ds_configs/zero1.json", "launch/recipes/sample.yaml", "shards/sample/corpus.pubtator", "LICENSE",
                 "bali_ds/losses/contrastive/native/tiles.h"):  # fmt: skip
        assert name in names
    assert not any(name.startswith(("tests/", "bench/results", "shards/built")) for name in names)


def test_the_first_hour_in_an_empty_folder(installed, tmp_path):
    def run(*command: object) -> str:
        line = [str(each) for each in command]
        done = subprocess.run(line, env=installed, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Traceback" not in done.stderr
        return done.stdout

    where = run("python", "-c", "import bali_ds; print(bali_ds.__file__)").strip()
    assert Path(where).is_relative_to(Path(installed["HOME"]).parent)
    said = run("bali-ds", "train", "sample", "steps=4", "log_every=1", "batch.passages=16", "--ranks", "2")
    assert "step 4/4" in said
    assert "linking, Acc@1" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "shards"]
    (tmp_path / "mentions.txt").write_text("heart attack\n")
    model = tmp_path / "runs/sample/export"
    linked = run("bali-ds", "link", "--model", model, "--graph", "shards/built/sample/graph", "mentions.txt")
    assert linked.startswith("heart attack\tC")
    pytest.importorskip("sentence_transformers")
    script = (
        "import bali_ds; from sentence_transformers import SentenceTransformer\n"
        "texts = ['heart attack', 'liver']; model = 'runs/sample/export'\n"
        "ours, theirs = bali_ds.load(model).encode(texts), SentenceTransformer(model, device='cpu').encode(texts)\n"
        "print(float(abs(ours - theirs).max()))\n"
    )
    assert float(run("python", "-c", script).splitlines()[-1]) < 1e-3  # exported as fp16
