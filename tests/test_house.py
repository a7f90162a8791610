"""Rules of the repository: who may import whom, unique names, pinned versions, plain words, documents that are true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import bali_ds

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bali_ds"
FLOORS = {
    "errors": -6, "terminal": -5, "parsing": -4, "working_directory": -3, "files": -2, "npy": -1, "directories": -1,
    "locations": -1, "shipped_files": -1, "randomness": -1, "distributed": -1, "network_interface": -1,
    "bounded_reader": -3, "xml_elements": -1, "bus_errors": -3, "progress_bar": -4,
    "graph": 0, "losses": 0, "config": 0,
    "corpus": 1,
    "shards": 2,
    "data": 3,
    "objectives": 4,
    "model": 5,
    "inference": 6, "doctor": 6,
    "planning": 7, "evaluation": 7,
    "library_internals": 7,
    "checkpoint": 8,
    "training": 9,
    "export": 10,
    "cli": 11, "__main__": 12, "__init__": 12,
}  # fmt: skip
WITHOUT = {
    "torch": (
        "errors", "terminal", "parsing", "working_directory", "files", "npy", "directories", "locations", "randomness",
        "bounded_reader", "xml_elements", "bus_errors", "shipped_files",
        "graph", "config", "corpus", "shards", "cli",
    ),
    "deepspeed": (
        "distributed", "losses", "data", "objectives", "model", "inference", "planning", "doctor", "evaluation",
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


def setup_arguments():
    calls = [node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.Call)]
    setup = next(call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "setup")
    return {word.arg: word.value for word in setup.keywords}


def test_every_direct_dependency_is_pinned_within_its_range():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    pinned = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    arguments = setup_arguments()
    needed = [*ast.literal_eval(arguments["install_requires"])]
    assert all(Requirement(text).specifier for text in needed)
    for texts in ast.literal_eval(arguments["extras_require"]).values():
        needed += texts
    for requirement in map(Requirement, needed):
        if requirement.name not in ("bali-ds", "triton"):  # a GPU's torch brings the triton that it wants
            assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


def test_the_version_has_one_source():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {bali_ds.__version__}\n" in citation
    assert f"\n## {bali_ds.__version__} " in (ROOT / "CHANGELOG.md").read_text()
    script = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert script.stdout.splitlines()[-1] == bali_ds.__version__


READERS = {
    "json.load": set(),
    "json.loads": {"parsing.py", "corpus/json_values.py"},
    "yaml.load": {"parsing.py"},
    "np.load": set(),
    "np.memmap": {"npy.py"},
    "np.fromfile": set(),
    "torch.load": {"checkpoint/zero_reader.py"},
}
"""Parsers of files that anybody may have written, and the only files that call them: they set the limits."""
INTERNAL = {"corpus/tokenizer.py", "data/worker.py", "training/heartbeat.py"}
"""Files that parse JSON which this program or one of its libraries has just written, not files."""


def test_files_from_outside_have_one_reader_each():
    found = []
    for path in SOURCES:
        relative = str(path.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            plain = name.replace("numpy.", "np.")
            loads_yaml = plain.startswith("yaml.") and "load" in plain and relative != "parsing.py"
            elsewhere = plain in READERS and relative not in READERS[plain] | INTERNAL
            if loads_yaml or elsewhere or plain in ("pickle.load", "pickle.loads", "joblib.load"):
                found.append(f"{relative}:{node.lineno}: {name}")
    assert found == []


DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "ds_configs/README.md", ROOT / "shards/README.md"]
)
TOP_FOLDERS = "bali_ds|bench|docs|ds_configs|launch|shards|tests"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_files_that_exist(document):
    text = document.read_text()
    named = re.findall(rf"[\s`(]((?:{TOP_FOLDERS})/[\w./-]*\w)", text)
    named += re.findall(rf"\]\((?:\.\./)*((?:{TOP_FOLDERS})/[\w./-]*\w)\)", text)
    missing = {name for name in named if not name.startswith("shards/built/") and not (ROOT / name).exists()}
    linked = re.findall(r"\]\((?!https?:|#)([\w./-]+)\)", text)
    # pages of the reference are generated when the site is built, which checks the links to them
    missing |= {name for name in linked if "reference/" not in name and not (document.parent / name).exists()}
    assert missing == set()


def test_the_walk_of_the_contributors_guide_names_what_its_files_define():
    rows = re.findall(
        r"^\| `(bali_ds/[\w/]+\.(?:py|c))` \| (.+?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 15
    for path, names in rows:
        source = (ROOT / path).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            assert re.search(rf"\b(?:def|class) {name.split('.')[-1]}\b|^{name}\b", source, re.MULTILINE), (
                f"{path}: {name}"
            )


CHECKED_FOR_WORDS = [
    "README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "bali_ds", "bench", "docs", "ds_configs", "launch",
    "shards", "tests",
]  # fmt: skip
"""Files and folders whose text is checked."""
SUFFIXES = {"", ".c", ".h", ".md", ".py", ".sbatch", ".sh", ".yaml"}
KEPT = {"bali_ds/config/aliases.py", "tests/test_config.py", "tests/test_house.py"}
"""Files that have to hold old spellings."""
KEPT_WORDS = {
    # keys of stored files
    "bali_ds/checkpoint/manager.py": "optimised",
    "bali_ds/checkpoint/zero_reader.py": "optimised",
    "bali_ds/checkpoint/zero_schema.py": "optimised",
    "bali_ds/data/sampling.py": "neighbours",
    "bali_ds/shards/index_schema.py": "neighbours",
    "bali_ds/shards/build.py": "neighbours",
    "bali_ds/shards/lint.py": "neighbours",
    "bali_ds/shards/neighbor_settings.py": "neighbours",
    "shards/README.md": "neighbours",
    "tests/data/test_mixture.py": "neighbours",
    "tests/shards/test_shard_tools.py": "neighbours",
    # words of the sample's passages, of PubMed and of a mistake that a test makes
    "shards/sample/passages.py": "neighbour",
    "bali_ds/corpus/pubmed_xml.py": "UNLABELLED",
    "tests/corpus/test_formats.py": "UNLABELLED",
    "tests/doctor/test_deepspeed_config.py": "zero_optimisation",
}
BRITISH = (
    r"(?i)\b\w*(?:optimis|normalis|linearis|initialis|serialis|finalis|tokenis|summaris|regularis|organis(?!m)|recognis|"
    r"neighbour|behaviour|favour|colour|honour|labell)\w*|\b(?:learnt|centres?|metres?)\b"
)
UNCLEAR = (
    r"(?<!there )\b(?:is no (?!longer\b)|(?:is|are) none\b)|\bno number\b|\bgoes on\b|\bleaves out\b|\btold by\b|"
    r"\b(?:is|are|was|were) left out\b"
)


def lines_of_text():
    for name in CHECKED_FOR_WORDS:
        top = ROOT / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            relative = str(path.relative_to(ROOT))
            if path.is_file() and path.suffix in SUFFIXES and relative not in KEPT:
                for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                    yield f"{relative}:{number}", line


@pytest.mark.parametrize("words", [BRITISH, UNCLEAR], ids=["british", "unclear"])
def test_text_is_plain_american_english(words):
    found = []
    for where, line in lines_of_text():
        hit = re.search(words, line)
        # Strings in keys of random draws keep their spelling, because every result follows from them.
        if hit and "derive(" not in line and KEPT_WORDS.get(where.partition(":")[0]) != hit[0]:
            found.append(f"{where}: {hit[0]}")
    assert found == []
