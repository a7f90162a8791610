"""--quiet leaves results and errors, --verbose shows what libraries log, in every command; completion scripts."""

import argparse
import logging
import shutil
import subprocess

import pytest

from bali_ds.cli import main, parser
from bali_ds.cli.verbosity import start_output
from bali_ds.progress_bar import progress_bar
from bali_ds.terminal import copied_progress, print_progress, print_result


@pytest.fixture(autouse=True)
def normal_again():
    yield
    start_output(argparse.Namespace())


@pytest.mark.parametrize(
    ("chosen", "shown"),
    [
        ("normal", {"progress", "result", "warning", "error", "bar"}),
        ("quiet", {"result", "error"}),
        ("verbose", {"progress", "result", "warning", "error", "bar", "library"}),
    ],
)
def test_what_is_shown(chosen, shown, capsys, monkeypatch):
    monkeypatch.setattr("bali_ds.progress_bar._SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "")
    start_output(argparse.Namespace(verbosity=chosen))
    log, copies = logging.getLogger("some.library"), []
    with copied_progress(copies.append), progress_bar("bar", 2, "texts") as bar:
        print_progress("progress")
        print_result("result")
        bar.update(2)
    log.info("library")
    log.warning("warning")
    log.error("error")
    said = "".join(capsys.readouterr())
    words = ("progress", "result", "warning", "error", "bar", "library")
    assert {word for word in words if word in said} == shown
    assert copies == ["progress", "result"]  # the log of a run has both


def test_every_command_takes_both_options_before_and_after_its_name(capsys):
    top = parser()
    for line in (["-q", "graph", "stats", "g"], ["graph", "--quiet", "stats", "g"], ["graph", "stats", "g", "-q"]):
        assert top.parse_args(line).verbosity == "quiet"
    assert top.parse_args(["train", "sample", "--verbose", "steps=2"]).verbosity == "verbose"
    assert not hasattr(top.parse_args(["train", "sample"]), "verbosity")
    with pytest.raises(SystemExit):
        top.parse_args(["doctor", "--quiet", "--verbose"])
    assert "--verbose: not allowed with argument -q/--quiet" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "fish", "zsh", "tcsh"])
def test_the_completion_script_knows_commands_and_options(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("multi-hop", "hold-out", "master-addr"):
        assert word in script.replace("_", "-")
    if shell == "bash":
        complete = 'COMP_WORDS=(bali-ds evaluate lin); COMP_CWORD=2; COMP_LINE="bali-ds evaluate lin"; '
        calls = f"{script}\n{complete}_shtab_bali_ds; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", calls], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["linking"]
    elif shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(("terminal", "chosen", "said"), [(True, [], True), (True, ["-q"], False), (False, [], False)])
def test_a_terminal_is_told_what_takes_seconds(terminal, chosen, said, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert main(["report", str(tmp_path), *chosen]) == 2
    assert ("bali-ds: loading torch" in capsys.readouterr().err) == said
