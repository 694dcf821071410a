"""cfpose-train: the stages of training, from a recipe to checkpoints."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfpose_training import run_commands
from cfpose_training.file_commands import add_convert, add_data, convert, data, whole_number
from cfpose_training.label_command import add_label, label


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    handlers = {
        "teacher": run_commands.teacher,
        "stage1": run_commands.stage1,
        "stage2": run_commands.stage2,
        "finder": run_commands.finder,
        "average": run_commands.average,
        "ablation": run_commands.ablation,
        "convert": convert,
        "data": data,
        "label": label,
    }
    try:
        return handlers[arguments.command](arguments)
    finally:
        _leave_processes()


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
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--recipe", type=Path, required=True, help="TOML file, see training/recipes")
    place.add_argument("--data-root", type=Path, required=True, help="folder of the recipe's paths")
    place.add_argument("--out", type=Path, required=True, help="folder of this run")
    place.add_argument("--cache", type=Path, help="folder of decoded photos; none: OUT/cache")
    place.add_argument(
        "--threads", type=whole_number(0), default=0, help="CPU threads; 0: torch's choice"
    )
    place.add_argument("--dry-run", action="store_true", help="say what would run, and stop")
    common = argparse.ArgumentParser(add_help=False, parents=[place])
    common.add_argument("--resume", action="store_true", help="go on with the run in OUT")
    common.add_argument(
        "--max-minutes", type=float, default=math.inf, help="stop after this long, resumable"
    )
    common.add_argument("--accelerator", default="auto", help="Fabric's: auto, cpu, cuda")
    common.add_argument("--devices", type=whole_number(1), default=1, help="number of devices")
    common.add_argument(
        "--keep-last",
        type=whole_number(0),
        default=0,
        help="keep the checkpoints of so many last epochs",
    )
    start = argparse.ArgumentParser(add_help=False)
    start.add_argument(
        "--init",
        type=Path,
        help="start from this checkpoint or graph (ours, SimCC's, HRNet's, mmpose's, "
        "EfficientNet-Lite0's)",
    )
    commands.add_parser("teacher", parents=[common, start], help="the recipe's teacher, on labels")
    stage1 = commands.add_parser("stage1", parents=[common, start], help="the student")
    stage1.add_argument("--teacher", type=Path, help="checkpoint to distil from")
    stage2 = commands.add_parser("stage2", parents=[common], help="the refiner, student frozen")
    stage2.add_argument("--student", type=Path, required=True, help="checkpoint of stage 1")
    stage2.add_argument("--teacher", type=Path, help="checkpoint whose poses are the target")
    finder = commands.add_parser("finder", parents=[common], help="the person finder")
    finder.add_argument(
        "--labeller", type=Path, required=True, help="YOLOX ONNX that labels what has no boxes"
    )
    finder.add_argument("--init", type=Path, help="ImageNet weights of its body, or a finder")
    _add_average(
        commands.add_parser(
            "average", parents=[place], help="the mean of several students or finders"
        )
    )
    _add_ablation(
        commands.add_parser("ablation", parents=[common, start], help="schemes of Table IV")
    )
    add_convert(commands)
    add_data(commands)
    add_label(commands)
    return parser


def _add_average(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    for kind in ("student", "finder"):
        which.add_argument(
            f"--{kind}", type=Path, action="append", help="checkpoint; twice or more"
        )


def _add_ablation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--schemes", type=_names, default=_names("baseline,1,2,3,4,5,6"), help="comma-separated"
    )
    parser.add_argument("--seeds", type=_numbers, default=[1, 2], help="comma-separated")
    parser.add_argument("--teacher", type=Path, help="checkpoint to use; none: train one")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    return [whole_number(0)(name) for name in _names(text)]
