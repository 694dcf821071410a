"""The commands that train from a recipe, and the mean of what they trained."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfpose_training.config import Source
    from cfpose_training.data import DataOptions
    from cfpose_training.finder_config import PhotoSource
    from cfpose_training.loop import RunOptions
    from cfpose_training.optim_config import OptimConfig


def teacher(arguments: argparse.Namespace) -> int:
    """Run `teacher`; returns the exit code."""
    from cfpose_training.config import load_recipe
    from cfpose_training.pose_training import TEACHER_FILE, train_teacher
    from cfpose_training.schemes import teacher_recipe

    recipe = load_recipe(arguments.recipe)
    swapped = teacher_recipe(recipe)
    if arguments.dry_run:
        return _say(arguments, swapped.pose.name, swapped.stage1, swapped.sources, TEACHER_FILE)
    return _report(train_teacher(recipe, *_options(arguments), init=arguments.init))


def stage1(arguments: argparse.Namespace) -> int:
    """Run `stage1`; returns the exit code."""
    from cfpose_training.config import load_recipe
    from cfpose_training.pose_training import STUDENT_FILE, train_stage1

    recipe = load_recipe(arguments.recipe)
    if arguments.dry_run:
        return _say(arguments, recipe.pose.name, recipe.stage1, recipe.sources, STUDENT_FILE)
    return _report(
        train_stage1(recipe, *_options(arguments), arguments.teacher, init=arguments.init)
    )


def stage2(arguments: argparse.Namespace) -> int:
    """Run `stage2`; returns the exit code."""
    from cfpose_training.config import load_recipe
    from cfpose_training.pose_training import REFINED_FILE, train_stage2

    recipe = load_recipe(arguments.recipe)
    if arguments.dry_run:
        return _say(arguments, recipe.pose.name, recipe.stage2.optim, recipe.sources, REFINED_FILE)
    return _report(train_stage2(recipe, arguments.student, *_options(arguments), arguments.teacher))


def finder(arguments: argparse.Namespace) -> int:
    """Run `finder`; returns the exit code."""
    from cfpose_sdk.errors import TrainingError
    from cfpose_training.config import load_recipe
    from cfpose_training.finder_training import FINDER_FILE, train_finder

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

    from cfpose_training.averaging import average_finders, average_students, check_average
    from cfpose_training.config import load_recipe
    from cfpose_training.finder_training import FINDER_FILE
    from cfpose_training.pose_training import STUDENT_FILE

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
    from cfpose_training.ablation import plan, run_ablation
    from cfpose_training.ablation_table import MARKDOWN_FILE
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
    from cfpose_training.loop import RunOptions

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
    from cfpose_training.data import DataOptions

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
