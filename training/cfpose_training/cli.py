"""cfpose-train: the stages of training, from a recipe to checkpoints."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfpose_training.data_commands import (
    add_convert,
    add_data,
    add_label,
    convert,
    data,
    label,
    whole_number,
)

if TYPE_CHECKING:
    from cfpose_training.config import OptimConfig, PhotoSource, Source
    from cfpose_training.data.crop_dataset import DataOptions
    from cfpose_training.run.loop import RunOptions


def teacher(arguments: argparse.Namespace) -> int:
    """Run `teacher`; returns the exit code."""
    from cfpose_training.config import load_recipe, teacher_recipe
    from cfpose_training.pose.train import TEACHER_FILE, train_teacher

    recipe = load_recipe(arguments.recipe)
    swapped = teacher_recipe(recipe)
    if arguments.dry_run:
        return _say(arguments, swapped.pose.name, swapped.stage1, swapped.sources, TEACHER_FILE)
    return _report(train_teacher(recipe, *_options(arguments), init=arguments.init))


def stage1(arguments: argparse.Namespace) -> int:
    """Run `stage1`; returns the exit code."""
    from cfpose_training.config import load_recipe
    from cfpose_training.pose.train import STUDENT_FILE, train_stage1

    recipe = load_recipe(arguments.recipe)
    if arguments.dry_run:
        return _say(arguments, recipe.pose.name, recipe.stage1, recipe.sources, STUDENT_FILE)
    return _report(
        train_stage1(recipe, *_options(arguments), arguments.teacher, init=arguments.init)
    )


def stage2(arguments: argparse.Namespace) -> int:
    """Run `stage2`; returns the exit code."""
    from cfpose_training.config import load_recipe
    from cfpose_training.pose.train import REFINED_FILE, train_stage2

    recipe = load_recipe(arguments.recipe)
    if arguments.dry_run:
        return _say(arguments, recipe.pose.name, recipe.stage2.optim, recipe.sources, REFINED_FILE)
    return _report(train_stage2(recipe, arguments.student, *_options(arguments), arguments.teacher))


def finder(arguments: argparse.Namespace) -> int:
    """Run `finder`; returns the exit code."""
    from cfpose_sdk.errors import TrainingError
    from cfpose_training.config import load_recipe
    from cfpose_training.finder.train import FINDER_FILE, train_finder

    recipe = load_recipe(arguments.recipe)
    if arguments.dry_run:
        if recipe.finder is None:
            raise TrainingError("the recipe has no [finder] table")
        finder = recipe.finder
        return _say(arguments, finder.name, finder.optim, finder.sources, FINDER_FILE)
    return _report(
        train_finder(recipe, arguments.labeller, *_options(arguments), init=arguments.init)
    )


def average(arguments: argparse.Namespace) -> int:
    """Run `average`; returns the exit code."""
    import torch

    from cfpose_training.average import average_finders, average_students, check_average
    from cfpose_training.config import load_recipe
    from cfpose_training.finder.train import FINDER_FILE
    from cfpose_training.pose.train import STUDENT_FILE

    recipe = load_recipe(arguments.recipe)
    kind = "student" if arguments.student else "finder"
    checkpoints = arguments.student or arguments.finder
    target = arguments.out / (STUDENT_FILE if kind == "student" else FINDER_FILE)
    check_average(checkpoints, target)
    if arguments.dry_run:
        _say_files(arguments, kind)
        print(f"  writes {target}")
        return 0
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    average = average_students if kind == "student" else average_finders
    return _report(average(recipe, checkpoints, _data(arguments), arguments.out))


def ablation(arguments: argparse.Namespace) -> int:
    """Run `ablation`; returns the exit code."""
    from cfpose_training.ablation.run import plan, run_ablation
    from cfpose_training.ablation.table import MARKDOWN_FILE
    from cfpose_training.config import load_recipe

    recipe = load_recipe(arguments.recipe)
    if arguments.dry_run:
        _say_files(arguments, "teacher", "init")
        own = arguments.teacher is None
        for job in plan(recipe, arguments.schemes, arguments.seeds, own_teacher=own)[0]:
            done = (arguments.out / job.checkpoint).is_file()
            print(f"{'done  ' if done else 'to run'} {arguments.out / job.checkpoint}")
        return 0
    rows = run_ablation(
        recipe, arguments.schemes, arguments.seeds, *_options(arguments), arguments.teacher,
        init=arguments.init,
    )  # fmt: skip
    return _report(None if rows is None else arguments.out / MARKDOWN_FILE)


def _say(
    arguments: argparse.Namespace,
    name: str,
    optim: OptimConfig,
    sources: Sequence[Source | PhotoSource],
    file: str,
) -> int:
    """What a command would do, a line a fact."""
    print(f"{arguments.command} of {name}: {optim.epochs} epochs, batches of {optim.batch_size}")
    print(f"  {optim}")
    _say_files(arguments, "student", "teacher", "labeller", "init")
    for source in sources:
        for part in filter(None, (source.annotations, source.images)):
            path = arguments.data_root / part
            print(f"  {source.name}: {path}{'' if path.exists() else ' (missing)'}")
    print(f"  writes {arguments.out / file}")
    return 0


def _say_files(arguments: argparse.Namespace, *names: str) -> None:
    for name in names:
        given = getattr(arguments, name, None)
        for path in given if isinstance(given, list) else filter(None, [given]):
            print(f"  {name}: {path}{'' if path.is_file() else ' (missing)'}")


def _options(arguments: argparse.Namespace) -> tuple[DataOptions, RunOptions]:
    from cfpose_training.run.loop import RunOptions

    run = RunOptions(
        folder=arguments.out,
        resume=arguments.resume,
        max_minutes=arguments.max_minutes,
        devices=arguments.devices,
        accelerator=arguments.accelerator,
        threads=arguments.threads,
        keep_last=arguments.keep_last,
    )
    return _data(arguments), run


def _data(arguments: argparse.Namespace) -> DataOptions:
    from cfpose_training.data.crop_dataset import DataOptions

    return DataOptions(arguments.data_root, arguments.cache or arguments.out / "cache")


def _report(checkpoint: Path | None) -> int:
    from cfpose_training.processes import is_first_process

    if not is_first_process():
        return 0
    if checkpoint is None:
        print("time is up; run the same command with --resume to go on")
    else:
        print(f"wrote {checkpoint}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    handlers = {
        "teacher": teacher,
        "stage1": stage1,
        "stage2": stage2,
        "finder": finder,
        "average": average,
        "ablation": ablation,
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
