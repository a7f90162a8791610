"""Control characters of data reach the terminal escaped, in every command that prints data."""

import contextlib
import json
import logging
import subprocess
import sys

import pytest

from bali_ds import terminal
from bali_ds.cli import main
from bali_ds.graph.builder import build_graph
from bali_ds.graph.tables import TableSource
from bali_ds.terminal import PrintableFormatter, json_line, message, printable, printable_values
from tests.damage import is_harmless
from tests.test_damaged_files import whole  # noqa: F401 (a fixture)

EVIL = "red\x1b[31m\x07\x9b2J\u202etxet\u2028end"
SHOWN = r"red\x1b[31m\x07\x9b2J\u202etxet\u2028end"


def test_control_characters_are_shown_and_letters_kept():
    assert printable(EVIL) == SHOWN
    assert printable("β-é, 𝛼, naïve") == "β-é, 𝛼, naïve"
    assert printable("a\nb\tc\ud800") == r"a\nb\tc\ud800"
    assert printable_values({EVIL: [(EVIL, 1)]}) == {SHOWN: [(SHOWN, 1)]}
    assert len(message("x" * 10_000)) < 2100


def test_json_is_the_same_value_without_control_characters():
    line = json_line({"a": EVIL})
    assert is_harmless(line)
    assert json.loads(line) == {"a": EVIL}


def test_log_lines_are_one_line():
    record = logging.LogRecord("x", logging.WARNING, "x", 1, "%s", ("a\x1b[2J\nb",), None)
    assert PrintableFormatter().format(record) == r"a\x1b[2J\nb"
    try:
        raise ValueError(EVIL)
    except ValueError:
        record.exc_info = sys.exc_info()
    lines = PrintableFormatter().format(record).split("\n")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == f"ValueError: {SHOWN}"


@pytest.fixture
def graph(tmp_path):
    """A graph whose names hold control characters."""
    nodes, edges = tmp_path / "nodes.tsv", tmp_path / "edges.tsv"
    nodes.write_text(f"cui\tpreferred_name\nC1\t{EVIL}\nC2\tname {EVIL}\n")
    edges.write_text(f"head_cui\trelation\ttail_cui\tsource\nC1\tisa{EVIL}\tC2\tX\n")
    build_graph([TableSource(nodes, edges)], tmp_path / "graph")
    return tmp_path / "graph"


@pytest.mark.parametrize(
    "command", ["graph show {} C1", "graph show {} C1 --json", "graph stats {}", "graph show {} C9\x1b"]
)
def test_commands_print_names_escaped(command, graph, capsys):
    main(command.format(graph).split(" "))
    captured = capsys.readouterr()
    lines = (captured.out + captured.err).splitlines()
    assert len(lines) >= 1
    assert all(map(is_harmless, lines))


def test_links_are_one_line_each(graph, whole, capsys):  # noqa: F811
    mentions = graph.with_name("mentions.txt")
    mentions.write_text(f"{EVIL}\nrenal\n")
    for options in ([], ["--json"]):
        assert main(["link", "--model", str(whole / "model"), "--graph", str(graph), *options, str(mentions)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        assert all(is_harmless(line.replace("\t", "")) for line in lines)


@pytest.mark.parametrize("command", ["graph show GRAPH C1", "graph stats GRAPH --json"])
def test_a_full_disk_behind_standard_output_is_one_line(command, graph):
    arguments = command.replace("GRAPH", str(graph)).split()
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bali_ds", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (
        2, "bali-ds: standard output cannot be written: No space left on device\n"
    )  # fmt: skip


def test_progress_that_cannot_be_printed_does_not_end_a_run(monkeypatch, caplog):
    terminal._warn_once.cache_clear()
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        for _ in range(2):
            terminal.print_progress("step 1\nof 2")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    (line,) = caplog.messages
    assert line.startswith("standard output cannot be written, the run continues without it: No space left")


def test_progress_is_printed_line_by_line_and_printable(capsys):
    terminal.print_progress(f"a\n{EVIL}")
    assert capsys.readouterr().out == f"a\n{SHOWN}\n"
