"""Every option of every command says what it is, and what its default is."""

import argparse

import pytest

from bali_ds.cli import parser
from bali_ds.corpus.readers import READERS


def commands(top, name="bali-ds"):
    """Yield (name, parser) of every command that is not a group of commands."""
    groups = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for word, below in group.choices.items():
            yield from commands(below, f"{name} {word}")
    if not groups:
        yield name, top


COMMANDS = dict(commands(parser()))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text_with_its_default(name):
    assert COMMANDS[name].format_help()
    for action in COMMANDS[name]._actions:
        assert action.help, action.dest
        if action.option_strings and action.default not in (None, False, "", [], argparse.SUPPRESS):
            assert "(default: " in action.help, action.dest


def test_the_formats_of_a_corpus_are_listed():
    text = " ".join(COMMANDS["bali-ds shards build"].format_help().split())
    *most, last = READERS
    assert f"FORMAT is {', '.join(most)} or {last}" in text


@pytest.mark.parametrize("arguments", [[], ["graph"], ["evaluate", "linking"], ["nonsense"]])
def test_wrong_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("bali-ds")
    assert said.count("\n") == 1
