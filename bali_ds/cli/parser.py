"""Parser of command lines: a mistake gets one line that says what to write instead."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from bali_ds.cli.verbosity import add_verbosity
from bali_ds.errors import nearest, suggestion
from bali_ds.terminal import printable

_VALUE = re.compile(r"argument (.+?): invalid (\w+) value: '(.*)'", re.DOTALL)
_KINDS = {
    "float": "a number", "share": "a number",
    "int": "a whole number", "positive": "a whole number", "seed": "a whole number", "_count": "a whole number",
}  # fmt: skip
"""Function that parses a value, by its name, and what the value is called in a message."""
_CHOICE = re.compile(r"argument (.+?): invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """Parser that ends with one line and status 2, and lets `key=value` arguments stand anywhere.

    A parser with a positional argument `overrides` takes the `key=value` arguments before, between and after options;
    argparse itself takes those of one place.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)
        add_verbosity(self)
        self._given: list[str] = []

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse arguments as argparse does; unknown ones are an error of the command that they were given to."""
        self._given = list(sys.argv[1:] if args is None else args)
        options, extra = super().parse_known_args(args, namespace)
        if hasattr(options, "overrides"):
            options.overrides += [text for text in extra if not text.startswith("-")]
            extra = [text for text in extra if text.startswith("-")]
        if extra:
            self.error(self._unknown(extra[0], hasattr(options, "overrides")))
        return options, []

    def _unknown(self, argument: str, has_overrides: bool) -> str:
        if not argument.startswith("-"):
            return f"{argument}: one argument too many; put quotes around a text with spaces"
        option = argument.partition("=")[0]
        if has_overrides and ("." in option or not self._similar(option)):
            key = option.lstrip("-").replace("-", "_")
            return f"{option}: no such option; keys of the recipe are written {key}=VALUE, without dashes"
        similar = self._similar(option)
        return f"{option}: no such option" + (f"; did you mean {similar}?" if similar else "")

    def _first_unknown(self) -> str | None:
        """Return the first argument that looks like an option and is not one, which may be why others are missing."""
        known = self._option_string_actions
        return next(
            (
                text
                for text in self._given
                if text.startswith("--") and not any(name.startswith(text.partition("=")[0]) for name in known)
            ),
            None,
        )

    def _similar(self, option: str) -> str | None:
        return nearest(option, [name for name in self._option_string_actions if name.startswith("--")])

    def error(self, message: str) -> NoReturn:
        """Print one line that says what is wrong, and what to write instead, and exit with status 2."""
        if choice := _CHOICE.fullmatch(message):
            what, wrong, known = choice[1], choice[2], re.findall(r"'(.*?)'", choice[3])
            kind = "no such command" if what in ("COMMAND", "TASK") else f"is not a value of {what}"
            message = f"{wrong}: {kind}; {suggestion(wrong, known)}"
        elif value := _VALUE.fullmatch(message):
            message = f"{value[1]}: '{value[3]}' is not {_KINDS.get(value[2], value[2])}"
        elif message.startswith("the following arguments are required") and (unknown := self._first_unknown()):
            message = self._unknown(unknown, False)
        else:
            message = message.removeprefix("argument ").replace("the following arguments are required", "missing")
        self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")
