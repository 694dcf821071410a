"""The commands that train, finish and average: their arguments, and what runs them."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfpose_sdk.commands import number
from cfpose_training.commands.data import (
    data_options,
    given,
    minutes,
    names,
    numbers,
    whole_number,
)

if TYPE_CHECKING:
    from cfpose_training.commands.data import Commands
    from cfpose_training.config import OptimConfig, PhotoSource, Source
    from cfpose_training.run.loop import RunOptions

# the options that `data_options` and `_run_options` take
DATA = ("data_root", "cache")
RUN = ("out", "resume", "max_minutes", "devices", "accelerator", "threads", "keep_last")


def add_stages(commands: Commands) -> None:
    """Add every command that trains from a recipe, and its arguments."""
    place, start = _place_parser(), _start_parser()
    common = _run_parser(place)
    _add_stages(commands, common, start)
    _add_finder(commands, common)
    _add_finish(commands, place)
    _add_average(commands, place)
    _add_ablation(commands, common, start)


def teacher(arguments: argparse.Namespace) -> int:
    """Run `teacher`; returns the exit code."""
    from cfpose_training.config import load_recipe, teacher_recipe
    from cfpose_training.pose.train import TEACHER_FILE, train_teacher

    recipe, init = load_recipe(arguments.recipe), _start(arguments.init)
    data_root, dry_run = arguments.data_root, arguments.dry_run
    checkpoint, scratch = arguments.out / TEACHER_FILE, arguments.from_scratch
    data, run = data_options(**given(arguments, DATA)), _run_options(**given(arguments, RUN))

    swapped = teacher_recipe(recipe)
    if dry_run:
        title = f"teacher of {swapped.pose.name}"
        _say_run(title, swapped.stage1, [("init", init)], swapped.sources, data_root, checkpoint)
        return 0
    return _report(train_teacher(recipe, data, run, init=init, from_scratch=scratch))


def stage1(arguments: argparse.Namespace) -> int:
    """Run `stage1`; returns the exit code."""
    from cfpose_training.config import load_recipe
    from cfpose_training.pose.train import STUDENT_FILE, train_stage1

    recipe, teacher, init = (
        load_recipe(arguments.recipe),
        _start(arguments.teacher),
        _start(arguments.init),
    )
    data_root, dry_run = arguments.data_root, arguments.dry_run
    checkpoint, scratch = arguments.out / STUDENT_FILE, arguments.from_scratch
    data, run = data_options(**given(arguments, DATA)), _run_options(**given(arguments, RUN))

    if dry_run:
        title, files = f"stage1 of {recipe.pose.name}", [("teacher", teacher), ("init", init)]
        _say_run(title, recipe.stage1, files, recipe.sources, data_root, checkpoint)
        return 0
    return _report(train_stage1(recipe, data, run, teacher, init=init, from_scratch=scratch))


def stage2(arguments: argparse.Namespace) -> int:
    """Run `stage2`; returns the exit code."""
    from cfpose_training.config import load_recipe
    from cfpose_training.pose.train import REFINED_FILE, train_stage2

    recipe, student, teacher = (
        load_recipe(arguments.recipe),
        arguments.student,
        _start(arguments.teacher),
    )
    data_root, dry_run = arguments.data_root, arguments.dry_run
    checkpoint = arguments.out / REFINED_FILE
    data, run = data_options(**given(arguments, DATA)), _run_options(**given(arguments, RUN))

    if dry_run:
        title, files = f"stage2 of {recipe.pose.name}", [("student", student), ("teacher", teacher)]
        _say_run(title, recipe.stage2.optim, files, recipe.sources, data_root, checkpoint)
        return 0
    return _report(train_stage2(recipe, student, data, run, teacher))


def finder(arguments: argparse.Namespace) -> int:
    """Run `finder`; returns the exit code."""
    from cfpose_sdk.errors import TrainingError
    from cfpose_training.config import load_recipe
    from cfpose_training.finder.train import FINDER_FILE, train_finder

    recipe, labeller, init = load_recipe(arguments.recipe), arguments.labeller, arguments.init
    data_root, dry_run = arguments.data_root, arguments.dry_run
    checkpoint = arguments.out / FINDER_FILE
    data, run = data_options(**given(arguments, DATA)), _run_options(**given(arguments, RUN))

    if dry_run:
        if recipe.finder is None:
            raise TrainingError("the recipe has no [finder] table")
        title, files = f"finder of {recipe.finder.name}", [("labeller", labeller), ("init", init)]
        _say_run(title, recipe.finder.optim, files, recipe.finder.sources, data_root, checkpoint)
        return 0
    return _report(train_finder(recipe, labeller, data, run, init=init))


def average(arguments: argparse.Namespace) -> int:
    """Run `average`; returns the exit code."""
    import torch

    from cfpose_training.average import average_finders, average_students, check_average
    from cfpose_training.config import load_recipe
    from cfpose_training.finder.train import FINDER_FILE
    from cfpose_training.pose.train import STUDENT_FILE

    recipe, students, finders = load_recipe(arguments.recipe), arguments.student, arguments.finder
    out, threads, dry_run = arguments.out, arguments.threads, arguments.dry_run
    data = data_options(**given(arguments, DATA))

    kind, checkpoints = ("student", students) if students else ("finder", finders)
    target = out / (STUDENT_FILE if kind == "student" else FINDER_FILE)
    check_average(checkpoints, target)
    if dry_run:
        _say_files((kind, path) for path in checkpoints)
        print(f"  writes {target}")
        return 0
    if threads:
        torch.set_num_threads(threads)
    average = average_students if kind == "student" else average_finders
    return _report(average(recipe, checkpoints, data, out))


def finish(arguments: argparse.Namespace) -> int:
    """Run `finish`; returns the exit code."""
    import torch

    from cfpose_training.config import load_recipe
    from cfpose_training.finish import FINISHED_FILE, finish_student

    recipe, student, init = load_recipe(arguments.recipe), arguments.student, _start(arguments.init)
    out, threads, share = arguments.out, arguments.threads, arguments.init_share
    data, dry_run = data_options(**given(arguments, DATA)), arguments.dry_run

    if dry_run:
        _say_files([("student", student), ("init", init)])
        print(f"  writes {out / FINISHED_FILE}")
        return 0
    if threads:
        torch.set_num_threads(threads)
    return _report(finish_student(recipe, student, data, out, init=init, init_share=share))


def ablation(arguments: argparse.Namespace) -> int:
    """Run `ablation`; returns the exit code."""
    from cfpose_training.ablation.jobs import Starts, plan
    from cfpose_training.ablation.run import run_ablation
    from cfpose_training.ablation.table import MARKDOWN_FILE
    from cfpose_training.config import load_recipe
    from cfpose_training.pose.protocol import Protocol

    recipe = load_recipe(arguments.recipe)
    files = {role: _start(getattr(arguments, role)) for role in ("teacher", "teacher_init", "init")}
    starts = Starts(**files, from_scratch=arguments.from_scratch)
    protocol = Protocol.of(arguments.preset, arguments.boxes)
    schemes, seeds, processes = arguments.schemes, arguments.seeds, arguments.jobs
    out, dry_run = arguments.out, arguments.dry_run
    data, run = data_options(**given(arguments, DATA)), _run_options(**given(arguments, RUN))

    if dry_run:
        _say_files((role.replace("_", "'s "), path) for role, path in files.items())
        print(f"  {protocol.text}")
        for job in plan(recipe, schemes, seeds, own_teacher=starts.teacher is None)[0]:
            done = (out / job.checkpoint).is_file()
            print(f"{'done  ' if done else 'to run'} {out / job.checkpoint}")
        return 0
    rows = run_ablation(
        recipe, schemes, seeds, data, run, starts, processes=processes, protocol=protocol
    )
    return _report(None if rows is None else out / MARKDOWN_FILE)


def _start(name: Path | None) -> Path | None:
    """The file of a bundled model's name, or the path itself."""
    from cfpose_sdk.backends.bundled import model_file

    return None if name is None else model_file(name)


def _run_options(*, out: Path, **options: Any) -> RunOptions:
    from cfpose_training.run.loop import RunOptions

    return RunOptions(folder=out, **options)


def _say_run(
    title: str,
    optim: OptimConfig,
    files: Iterable[tuple[str, Path | None]],
    sources: Sequence[Source | PhotoSource],
    data_root: Path,
    checkpoint: Path,
) -> None:
    """Print what a stage would read, do and write, a line a fact."""
    print(f"{title}: {optim.epochs} epochs, batches of {optim.batch_size}")
    print(f"  {optim}")
    _say_files(files)
    for source in sources:
        for part in filter(None, (source.annotations, source.images)):
            path = data_root / part
            print(f"  {source.name}: {path}{'' if os.path.exists(path) else ' (missing)'}")
    print(f"  writes {checkpoint}")


def _say_files(files: Iterable[tuple[str, Path | None]]) -> None:
    """Print the files that are given: their role and path, and whether they are missing."""
    for role, path in files:
        if path is not None:
            print(f"  {role}: {path}{'' if os.path.isfile(path) else ' (missing)'}")


def _report(checkpoint: Path | None) -> int:
    from cfpose_training.processes import is_first_process

    if not is_first_process():
        return 0
    if checkpoint is None:
        print("time is up; run the same command with --resume to go on")
    else:
        print(f"wrote {checkpoint}")
    return 0


def _place_parser() -> argparse.ArgumentParser:
    """What a command reads and where it writes; the parent of all that train or average."""
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--recipe", type=Path, required=True, help="TOML file, see training/recipes")
    place.add_argument(
        "--data-root", type=Path, required=True, help="folder that the recipe's paths start from"
    )
    place.add_argument("--out", type=Path, required=True, help="folder of this run")
    place.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER|none",
        help="folder of decoded photos; none: read the photos at each use; without it, a folder "
        "below $CFPOSE_CACHE (~/.cache/cfpose) that all runs over this data root share",
    )
    place.add_argument(
        "--threads", type=whole_number(0), default=0, help="CPU threads; 0: PyTorch chooses"
    )
    place.add_argument("--dry-run", action="store_true", help="print what would run, and stop")
    return place


def _run_parser(place: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options of a training run; the parent of every command that trains."""
    common = argparse.ArgumentParser(add_help=False, parents=[place])
    common.add_argument("--resume", action="store_true", help="continue the run in OUT")
    common.add_argument(
        "--max-minutes",
        type=minutes,
        default=math.inf,
        help="stop after this many minutes; --resume continues",
    )
    common.add_argument(
        "--accelerator", "--device", default="auto", help="Fabric's: auto, cpu, cuda"
    )
    common.add_argument("--devices", type=whole_number(1), default=1, help="number of devices")
    common.add_argument(
        "--keep-last",
        type=whole_number(0),
        default=0,
        help="keep the checkpoints of this many last epochs",
    )
    return common


def _start_parser() -> argparse.ArgumentParser:
    """The option of commands that can start from given weights."""
    start = argparse.ArgumentParser(add_help=False)
    start.add_argument(
        "--init",
        type=Path,
        help="start from a bundled model (default, cfpose-s, cfpose-m), or from this checkpoint or "
        "graph (ours, SimCC's, HRNet's, mmpose's, EfficientNet-Lite0's, MoveNet's)",
    )
    start.add_argument(
        "--from-scratch",
        action="store_true",
        help="begin on random weights, which a recipe that starts from ImageNet refuses else",
    )
    return start


def _add_stages(
    commands: Commands, common: argparse.ArgumentParser, start: argparse.ArgumentParser
) -> None:
    parser = commands.add_parser(
        "teacher", parents=[common, start], help="train the recipe's teacher on labels"
    )
    parser.set_defaults(run=teacher)
    parser = commands.add_parser(
        "stage1", parents=[common, start], help="train the student, with or without a teacher"
    )
    parser.set_defaults(run=stage1)
    parser.add_argument("--teacher", type=Path, help="checkpoint or heat-map ONNX to learn from")
    parser = commands.add_parser(
        "stage2", parents=[common], help="train the refiner; the student does not change"
    )
    parser.set_defaults(run=stage2)
    parser.add_argument("--student", type=Path, required=True, help="checkpoint of stage 1")
    parser.add_argument("--teacher", type=Path, help="checkpoint whose poses are the target")


def _add_finder(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "finder", parents=[common], help="train our person detector, the finder"
    )
    parser.set_defaults(run=finder)
    parser.add_argument(
        "--labeller",
        type=Path,
        required=True,
        help="YOLOX ONNX file that labels the people without annotated boxes",
    )
    parser.add_argument(
        "--init", type=Path, help="start from ImageNet weights of its body, or from a finder"
    )


def _add_finish(commands: Commands, place: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "finish", parents=[place], help="write the student as it ships without a refiner"
    )
    parser.set_defaults(run=finish)
    parser.add_argument("--student", type=Path, required=True, help="checkpoint of stage 1")
    parser.add_argument("--init", type=Path, help="what it began from, to mix its weights with")
    parser.add_argument(
        "--init-share", type=number(0, 1), default=0.0, help="share of the start in the mean"
    )


def _add_average(commands: Commands, place: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "average", parents=[place], help="average the weights of several students or finders"
    )
    parser.set_defaults(run=average)
    which = parser.add_mutually_exclusive_group(required=True)
    for kind in ("student", "finder"):
        which.add_argument(
            f"--{kind}", type=Path, action="append", help="checkpoint; give it twice or more"
        )


def _add_ablation(
    commands: Commands, common: argparse.ArgumentParser, start: argparse.ArgumentParser
) -> None:
    parser = commands.add_parser(
        "ablation", parents=[common, start], help="train and compare the schemes of Table IV"
    )
    parser.set_defaults(run=ablation)
    parser.add_argument(
        "--schemes", type=names, default=names("baseline,1,2,3,4,5,6"), help="comma-separated"
    )
    parser.add_argument("--seeds", type=numbers, default=[1, 2], help="comma-separated")
    parser.add_argument("--teacher", type=Path, help="checkpoint to use; none: train one")
    parser.add_argument(
        "--teacher-init", type=Path, help="start of the teacher that it trains, as --init"
    )
    parser.add_argument(
        "--jobs",
        type=whole_number(1),
        default=1,
        help="runs that train at once, each in a process with --threads of its own, on a GPU of "
        "its own where there are several; the table is the same",
    )
    parser.add_argument(
        "--preset",
        choices=("paper",),
        help="measure as the paper does: flip test, joints above 0.01, OKS-NMS, given boxes",
    )
    parser.add_argument(
        "--boxes", metavar="gt|F.json", help="of --preset paper: annotated boxes, or a file's"
    )
