"""Command `completion`: a script with which a shell completes commands, options and files.

shtab writes the script once from the parser. argcomplete, the alternative, starts Python at every press of the key.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

SHELLS = ("bash", "fish", "tcsh", "zsh")


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    completion = commands.add_parser(
        "completion",
        help="print a script that completes commands and options in a shell",
        description="Print a script with which a shell completes commands, options and files.",
        epilog="examples, for the next shell that you start:\n"
        "  bali-ds completion bash > ~/.local/share/bash-completion/completions/bali-ds\n"
        "  bali-ds completion zsh > ~/.zfunc/_bali-ds        (a folder of your $fpath)\n"
        "  bali-ds completion fish > ~/.config/fish/completions/bali-ds.fish",
    )
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, fish, tcsh or zsh")
    completion.set_defaults(run=_completion)


def _completion(options: argparse.Namespace) -> None:
    import shtab

    from bali_ds.cli import parser

    top = parser()
    for action in _actions(top):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(top, options.shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
