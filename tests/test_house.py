"""The floors of the house: who may import whom, and what must start without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "bali_ds"
FLOORS = {
    "errors": -4, "working_directory": -3, "files": -2, "directories": -1, "locations": -1, "randomness": -1,
    "distributed": -1,
    "graph": 0, "losses": 0, "config": 0,
    "corpus": 1,
    "shards": 2,
    "data": 3,
    "model": 4,
    "inference": 5, "doctor": 5,
    "planning": 6, "evaluation": 6,
    "library_internals": 6,
    "checkpoint": 7,
    "training": 8,
    "export": 9,
    "cli": 10, "__main__": 11, "__init__": 11,
}  # fmt: skip
WITHOUT = {
    "torch": (
        "errors", "working_directory", "files", "directories", "locations", "randomness", "graph", "config", "corpus",
        "shards", "cli",
    ),
    "deepspeed": (
        "distributed", "losses", "data", "model", "inference", "planning", "doctor", "evaluation",
    ),
}  # fmt: skip


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, top_level: bool) -> set[str]:
    """Full names of the modules that a file imports, all of them or those outside of functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if top_level and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names.update(f"{module}.{alias.name}" if module == "bali_ds" else module for alias in node.names)
    return names


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_from_floors_below(path):
    own = room(path)
    for name in imports(path, top_level=False):
        parts = name.split(".")
        if parts[0] == "bali_ds" and len(parts) > 1:
            other = parts[1]
            assert other == own or FLOORS[other] < FLOORS[own], f"{own} imports {other}"


def test_no_two_modules_share_a_file_name():
    folders = {}
    for path in SOURCES:
        if path.stem != "__init__":
            folders.setdefault(path.name, []).append(path.parent.name)
    assert {name: where for name, where in folders.items() if len(where) > 1} == {}


def test_no_two_public_classes_share_a_name():
    modules = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: where for name, where in modules.items() if len(where) > 1} == {}


@pytest.mark.parametrize(("library", "rooms"), WITHOUT.items())
def test_rooms_keep_heavy_libraries_out(library, rooms):
    for path in SOURCES:
        if room(path) in rooms:
            heavy = {name for name in imports(path, top_level=True) if name.split(".")[0] == library}
            assert not heavy, f"{path} imports {heavy}"


def test_help_starts_without_torch():
    script = "import sys; from bali_ds.cli import parser; parser().format_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_direct_dependency_is_pinned():
    root = PACKAGE.parent
    lines = (root / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    calls = [node for node in ast.walk(ast.parse((root / "setup.py").read_text())) if isinstance(node, ast.Call)]
    setup = next(call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "setup")
    values = {word.arg: word.value for word in setup.keywords}
    needed = set(ast.literal_eval(values["install_requires"]))
    for names in ast.literal_eval(values["extras_require"]).values():
        needed.update(names)
    names = {name.split(";")[0].lower() for name in needed}
    assert names - {"triton"} <= pinned  # a GPU's torch wants a version of its own
