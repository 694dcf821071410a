"""cfpose-train: one sub-command for each stage of training, from a recipe to a checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from cfpose_training.commands.data import UNCACHED, add_convert, add_data, add_label
from cfpose_training.commands.fit import add_fit, add_own
from cfpose_training.commands.reproduce import add_reproduce
from cfpose_training.commands.stages import add_stages


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    _check_outputs(arguments)
    try:
        code: int = arguments.run(arguments)
    finally:
        _leave_processes()
    return code


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raise InputError where a command could not write what it is asked for."""
    from cfpose_sdk.files import check_command_outputs, check_output_folder

    check_command_outputs(vars(arguments), "output", *(["out"] * (arguments.command == "label")))
    if getattr(arguments, "into", None) is not None:  # of `data fetch`
        check_output_folder("--into", arguments.into)
    for option in ("out", "cache"):
        folder = getattr(arguments, option, None)
        if folder in (None, UNCACHED) or arguments.command in ("label", "data"):
            continue
        check_output_folder(f"--{option}", folder)


def _leave_processes() -> None:
    if "torch" in sys.modules:  # `convert --help` and the like never import it
        from cfpose_training.processes import leave_processes

        leave_processes()


class _Parser(argparse.ArgumentParser):
    """Shows defaults in --help; sub-commands inherit the class."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(*args, **options)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="cfpose-train", description="Train pose models and person finders from a recipe."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_stages(commands)
    add_convert(commands)
    add_own(add_data(commands))
    add_label(commands)
    add_fit(commands)
    add_reproduce(commands)
    return parser
