"""What the user has at or beside an output survives it, whatever it is called and whenever the program is killed."""

import fcntl
import json
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from bali_ds import working_directory
from bali_ds.cli import main
from bali_ds.corpus.name_index import open_dictionary
from bali_ds.directories import Output, published_directory
from bali_ds.errors import InputError
from bali_ds.files import published_file, write_json
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.training.run_directory import discard_run, prepare
from tests.conftest import REPOSITORY
from tests.damage import largest_file

NOTES = Output("a set of notes", "notes.json", ("kind",), ("page-*.txt", "more/*.txt", "all/**"))
RECORD = {"format": "bali-ds workspace", "host": platform.node(), "target": "out"}


def publish(target, text="new", **options):
    with published_directory(target, NOTES, **options) as directory:
        write_json(directory / "notes.json", {"kind": text})
        (directory / "page-1.txt").write_text(text)


def contents(directory):
    return {path.relative_to(directory).as_posix(): path.read_text() for path in directory.rglob("*") if path.is_file()}


NEW = {"notes.json": '{\n  "kind": "new"\n}\n', "page-1.txt": "new"}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.mark.parametrize("before", ["absent", "empty", "older"])
def test_an_older_output_is_replaced(before, out):
    if before == "empty":
        out.mkdir()
    if before == "older":
        publish(out, "old")
        for file in ("page-2.txt", "more/page.txt", "all/of/it.bin", ".bali-ds-0123456789abcdef"):
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            (out / file).touch()
    publish(out)
    assert contents(out) == NEW
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    "file", ["thesis.tex", "page-1.doc", "more/deeper/page.txt", "page-1.txt/x", ".git/config", "all"]
)
@pytest.mark.parametrize("marked", [True, False])
def test_a_file_of_the_user_is_named_and_stays(file, marked, out):
    if marked:
        publish(out, "old")
        (out / "page-1.txt").unlink()
    (out / file).parent.mkdir(parents=True, exist_ok=True)
    (out / file).write_text("mine")
    before, named = contents(out), file if marked else file.partition("/")[0]
    with pytest.raises(InputError, match=rf"out: holds {named}, which is not part of a set of notes by bali-ds; name"):
        publish(out, overwrite=False)
    with pytest.raises(InputError, match=r"; move it away$"):
        publish(out)
    assert contents(out) == before
    assert list(out.parent.iterdir()) == [out]
    publish(out, overwrite=True)
    assert contents(out) == NEW


@pytest.mark.parametrize("marker", ["", "{", "[]", '{"other": 1}'])
def test_a_marker_of_somebody_else_marks_nothing(marker, out):
    out.mkdir()
    (out / "notes.json").write_text(marker)
    with pytest.raises(InputError, match=r"holds notes\.json"):
        publish(out)
    assert (out / "notes.json").read_text() == marker


def test_a_file_that_comes_while_the_output_is_written_stays(out):
    publish(out, "old")
    with pytest.raises(InputError, match=r"holds mine\.txt"), published_directory(out, NOTES):
        (out / "mine.txt").write_text("mine")
    assert (out / "mine.txt").read_text() == "mine"


def test_linked_folders_are_files_of_the_user(out, tmp_path):
    publish(out, "old")
    (tmp_path / "data").mkdir()
    (out / "more").symlink_to(tmp_path / "data")
    with pytest.raises(InputError, match="holds more,"):
        publish(out)
    assert (out / "more").is_symlink()


@pytest.mark.parametrize("there", ["older", "nothing", "nothing, nor its folder"])
def test_a_symbolic_link_is_written_through(there, out, tmp_path):
    target = tmp_path / "disk" / "deep" / "target"
    if there != "nothing, nor its folder":
        target.parent.mkdir(parents=True)
    if there == "older":
        publish(target, "old")
    out.symlink_to("disk/deep/target")
    publish(out)
    assert os.readlink(out) == "disk/deep/target"
    assert contents(target) == NEW
    out.unlink()
    out.symlink_to(target / "page-9.txt")
    with published_file(out, "w") as stream:
        stream.write("through")
    assert out.is_symlink()
    assert (target / "page-9.txt").read_text() == "through"


def test_a_link_to_the_files_of_the_user_does_not_lead_to_them(out, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").touch()
    out.symlink_to("home")
    with pytest.raises(InputError, match=r"out: holds thesis\.tex"):
        publish(out)
    out.unlink()
    out.symlink_to("out")
    with pytest.raises(InputError, match="out: is a file"):
        publish(out)


def test_what_is_not_a_regular_file_is_not_replaced_by_one(out):
    os.mkfifo(out)
    with pytest.raises(InputError, match="is not a regular file"):
        write_json(out, 1)
    assert stat.S_ISFIFO(out.stat().st_mode)


def test_a_full_disk_under_a_library_in_rust_is_one_line(out, tokenizer_directory):
    publish(out)
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_directory / "tokenizer.json"))
    written = "out: cannot be written: File too large"
    with pytest.raises(InputError, match=written), largest_file(4096), published_directory(out, NOTES) as working:
        tokenizer.save(str(working / "tokenizer.json"))
    assert contents(out) == NEW


def test_the_umask_decides(out):
    for mask in (0o022, 0o027, 0o077, 0o002):
        before = os.umask(mask)
        try:
            publish(out)
            write_json(out / "page-2.txt", 1)
        finally:
            os.umask(before)
        assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~mask
        for file in out.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask


class TestLeftovers:
    """Directories beside the output: only what a killed process of this program left goes."""

    @pytest.mark.parametrize("record", [None, "", "[]", "{}", json.dumps(RECORD | {"host": "elsewhere"})])
    def test_a_directory_without_our_record_stays(self, record, out):
        mine = out.with_name(".bali-ds-mine")
        mine.mkdir()
        (mine / "thesis.tex").touch()
        if record is not None:
            (mine / "owner.json").write_text(record)
        publish(out)
        assert (mine / "thesis.tex").exists()

    def test_a_dead_one_goes_and_a_live_one_stays(self, out):
        folders = [out.with_name(f".bali-ds-{name}") for name in ("dead", "live")]
        for folder in folders:
            folder.mkdir()
            (folder / "owner.json").write_text(json.dumps(RECORD))
        with open(folders[1] / "owner.json") as live:
            fcntl.flock(live, fcntl.LOCK_EX)
            publish(out)
        assert [folder.exists() for folder in folders] == [False, True]

    def test_a_shard_set_leaves_its_neighbors(self, tmp_path, graph_directory, tokenizer_directory, capsys):
        neighbor, work = tmp_path / ".s.a1b2c3d4", tmp_path / ".s.build"
        for folder in (neighbor, work):
            folder.mkdir()
            (folder / "thesis.tex").touch()
        command = build_shards(tmp_path / "s", graph_directory, tokenizer_directory)
        assert main(command) == 2
        assert ".s.build: holds thesis.tex, which is not part of an unfinished build" in capsys.readouterr().err
        assert (work / "thesis.tex").exists()
        (work / "thesis.tex").unlink()
        assert main(command) == 0
        assert main(command) == 0
        assert (neighbor / "thesis.tex").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == [".s.a1b2c3d4", "s"]


KILLS = """
import json, os, sys
from pathlib import Path
from bali_ds import working_directory
from bali_ds.directories import Output, published_directory

NOTES = Output("a set of notes", "notes.json", ("kind",), ())
OPERATIONS = "open os.rename os.mkdir os.remove os.rmdir os.listdir os.scandir ctypes.dlsym".split()
if sys.argv[2] == "two renames":
    working_directory._exchanged = lambda one, other: False

def publish(text):
    with published_directory(out, NOTES) as directory:
        (directory / "notes.json").write_text(json.dumps({"kind": text}))

def kind():
    return json.loads((out / "notes.json").read_text())["kind"]

def die_before(number):
    def audit(event, arguments):
        nonlocal number
        if event in OPERATIONS:
            number -= 1
            if number < 0:
                os._exit(9)
    sys.addaudithook(audit)

number, kinds, status = -1, set(), 9
while status == 9:
    number += 1
    out = Path(sys.argv[1], str(number), "out")
    publish("old")
    process = os.fork()
    if not process:
        die_before(number)
        publish("new")
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if sys.argv[2] == "exchange":
        kinds.add(kind())
    with working_directory.workspace(out):
        kinds.add(kind())
    publish("newest")
    assert kind() == "newest"
    # a directory whose owner died before it wrote its record is empty, and not known to be ours
    left = {path.name for path in out.parent.glob("*/*") if path.stat().st_size} - {"notes.json"}
    assert not left, left
assert status == 0
print(number, sorted(kinds))
"""


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(way, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLS, tmp_path, way], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    number, _, kinds = done.stdout.partition(" ")
    assert int(number) > 15
    assert kinds.strip() == "['new', 'old']"


def test_two_directories_are_exchanged_in_one_step_here(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / folder.name).touch()
    assert working_directory._exchanged(one, other)
    assert (one / "other").exists()
    assert (other / "one").exists()


def build_graph(out):
    return f"graph build --rrf {REPOSITORY}/shards/sample --out {out}".split()


def build_shards(out, graph, tokenizer):
    corpus = f"pubtator:{REPOSITORY}/shards/sample/corpus.pubtator --link dictionary --keep-unlinked"
    return f"shards build --graph {graph} --corpus {corpus} --tokenizer {tokenizer} --out {out}".split()


class TestCommands:
    @pytest.mark.parametrize("command", ["graph build", "shards build", "shards sample", "shards merge"])
    def test_a_folder_of_the_user_is_replaced_only_on_request(self, command, sample, tmp_path, capsys):
        out = tmp_path / "thesis"
        out.mkdir()
        (out / "chapter.tex").write_text("mine")
        arguments = {
            "graph build": build_graph(out),
            "shards build": build_shards(out, sample.graph, sample.encoder),
            "shards sample": f"shards sample {sample.shards} --samples 5 --out {out}".split(),
            "shards merge": f"shards merge {sample.shards} --out {out}".split(),
        }[command]
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        kind = "graph" if command == "graph build" else "shard set"
        assert line == (
            f"bali-ds: {out}: holds chapter.tex, which is not part of a {kind} by bali-ds; "
            "name another --out, or replace everything with --overwrite"
        )
        assert contents(out) == {"chapter.tex": "mine"}
        assert list(tmp_path.iterdir()) == [out]
        assert main([*arguments, "--overwrite"]) == 0
        assert not (out / "chapter.tex").exists()
        files = contents_as_bytes(out)
        assert main(arguments) == 0  # over an earlier output of its own
        assert contents_as_bytes(out) == files
        assert list(tmp_path.iterdir()) == [out]
        (out / "chapter.tex").write_text("mine")
        assert main(arguments) == 2
        assert (out / "chapter.tex").read_text() == "mine"

    def test_an_output_of_another_kind_is_not_replaced(self, sample, tmp_path):
        out = tmp_path / "graph"
        assert main(build_graph(out)) == 0
        before = contents_as_bytes(out)
        assert main(build_shards(out, sample.graph, sample.encoder)) == 2
        assert contents_as_bytes(out) == before

    def test_a_graph_of_an_earlier_version_or_a_damaged_one_is_built_again(self, tmp_path):
        out = tmp_path / "graph"
        assert main(build_graph(out)) == 0
        manifest = json.loads((out / "manifest.json").read_text())
        write_json(out / "manifest.json", manifest | {"format_version": 1, "checksum": ""})
        assert main(build_graph(out)) == 0
        assert json.loads((out / "manifest.json").read_text()) == manifest

    def test_a_folder_beside_the_graph_is_not_taken_for_its_dictionary(self, graph_directory, tmp_path):
        (tmp_path / "graph.dictionary").mkdir()
        (tmp_path / "graph.dictionary/thesis.tex").touch()
        with pytest.raises(InputError, match=r"holds thesis\.tex, .*; move it away"):
            open_dictionary(tmp_path / "graph.dictionary", KnowledgeGraph.open(graph_directory))
        assert (tmp_path / "graph.dictionary/thesis.tex").exists()


def contents_as_bytes(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


class TestRuns:
    @pytest.fixture
    def recipe(self, sample, tmp_path):
        return sample.recipe(tmp_path / "runs")

    @pytest.fixture
    def run(self, recipe):
        prepare(recipe)
        for file in ("checkpoints/step-00000001/a.pt", "metrics.jsonl", "export/config.json", "tensorboard/events.1"):
            (recipe.directory / file).parent.mkdir(parents=True, exist_ok=True)
            (recipe.directory / file).touch()
        return recipe.directory

    def test_a_run_goes(self, run):
        discard_run(run)
        assert list(run.iterdir()) == []
        assert list(run.parent.iterdir()) == [run]

    def test_no_run_is_no_mistake(self, recipe):
        discard_run(recipe.directory)
        prepare(recipe)

    @pytest.mark.parametrize("file", ["thesis.tex", "export/thesis.tex", "encoder/deep/thesis.tex", "data/a"])
    def test_files_of_the_user_stay(self, run, file):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).touch()
        before = contents(run)
        with pytest.raises(InputError, match=f"run: holds {file}, which is not part of a run by bali-ds; move it away"):
            discard_run(run)
        assert contents(run) == before

    def test_a_directory_that_is_not_a_run_stays(self, tmp_path):
        (tmp_path / "home").mkdir()
        (tmp_path / "home/recipe.yaml").write_text("eggs: 3\n")
        with pytest.raises(InputError, match=r"holds recipe\.yaml"):
            discard_run(tmp_path / "home")
        assert (tmp_path / "home/recipe.yaml").exists()

    def test_a_linked_run_is_emptied_and_stays_linked(self, run, tmp_path):
        os.rename(run, tmp_path / "disk")
        run.symlink_to(tmp_path / "disk")
        discard_run(run)
        assert run.is_symlink()
        assert list(run.iterdir()) == []

    def test_an_encoder_that_is_there_is_not_the_runs(self, recipe):
        encoder = recipe.directory / "encoder"
        encoder.mkdir(parents=True)
        (encoder / "config.json").write_text('{"model_type": "bert"}')
        (encoder / "model.safetensors").write_text("weights")
        with pytest.raises(InputError, match=r"encoder: holds model\.safetensors"):
            prepare(recipe)
        assert (encoder / "model.safetensors").read_text() == "weights"

    def test_preparing_goes_on_after_a_kill(self, recipe):
        prepare(recipe)
        (recipe.directory / "recipe.yaml").unlink()
        prepare(recipe)
        assert (recipe.directory / "recipe.yaml").exists()
