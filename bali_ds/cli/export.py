"""Commands that write a trained encoder as fp16 weights."""

import argparse


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
