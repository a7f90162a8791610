"""Options --quiet and --verbose, which mean the same in every command."""

import argparse
import logging
import os
import sys

from bali_ds.terminal import PrintableFormatter, set_verbosity

_QUIETED_LIBRARIES = ("httpx", "httpcore", "urllib3", "DeepSpeed", "transformers", "matplotlib")


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add both options; they may stand before and after the name of a command."""
    group = parser.add_mutually_exclusive_group()
    for short, option, text in (
        ("-q", "--quiet", "print only results and errors"),
        ("-v", "--verbose", "also show what the libraries log"),
    ):
        group.add_argument(
            short,
            option,
            dest="verbosity",
            action="store_const",
            const=option[2:],
            default=argparse.SUPPRESS,
            help=text,
        )


class _Console(logging.Handler):
    """Prints records on the standard error of the moment."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.setFormatter(PrintableFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # a malformed record, or a full disk
            self.handleError(record)


def start_output(options: argparse.Namespace, usual_level: int = logging.WARNING) -> None:
    """Show log records and progress of this process as --quiet and --verbose say.

    Args:
        options: of the command.
        usual_level: level from which records are shown without either option.
    """
    chosen, root = getattr(options, "verbosity", "normal"), logging.getLogger()
    set_verbosity(chosen)
    level = logging.INFO if chosen == "verbose" else usual_level
    root.setLevel(min(level, logging.WARNING))
    for handler in [each for each in root.handlers if isinstance(each, _Console)]:
        root.removeHandler(handler)
    root.addHandler(_Console(logging.ERROR if chosen == "quiet" else level))
    if chosen == "verbose":
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info")
        return
    for library in _QUIETED_LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
