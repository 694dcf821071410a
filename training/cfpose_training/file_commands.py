"""The commands that train nothing: `convert`, `data check` and `data speed`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cfpose_sdk.errors import ArtifactError

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def whole_number(least: int) -> Callable[[str], int]:
    """A type of argparse's arguments: a whole number, `least` or more."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(
                f"got {text!r}, expected a whole number of {least} or more"
            )
        return number

    return read


def add_convert(commands: Commands) -> None:
    """Add the arguments of `convert`."""
    parser = commands.add_parser(
        "convert", help="a checkpoint of SimCC, HRNet or mmpose into ours, or ours into theirs"
    )
    parser.add_argument("source", type=Path, help=".pth, or .safetensors or .onnx of ours")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--to", choices=("simcc", "mmpose"), help="write this layout, from a checkpoint of ours"
    )
    parser.add_argument("--network", choices=("w32", "w48", "s"), help="refuse any other HRNet")
    parser.add_argument("--recipe", type=Path, help="the model's name, joints and terms")


def add_data(commands: Commands) -> None:
    """Add the arguments of `data` and its actions."""
    actions = commands.add_parser("data", help="about data sets").add_subparsers(
        dest="action", required=True
    )
    check = actions.add_parser(
        "check",
        help="what is there, what is missing, what is wrong; photos are not decoded; exit 1 if "
        "anything is",
    )
    check.add_argument("folder", type=Path, help="data root")
    check.add_argument("--recipe", type=Path, help="check what this recipe needs")
    speed = actions.add_parser(
        "speed", help="samples per second of stage 1's loader, and of its network, each alone"
    )
    speed.add_argument("--recipe", type=Path, required=True, help="TOML file of the recipe")
    speed.add_argument("--data-root", type=Path, required=True, help="folder of its paths")
    speed.add_argument("--cache", type=Path, help="of a run; none: a sample is decoded anew")
    speed.add_argument(
        "--workers", type=whole_number(0), help="loader processes; none: as in the recipe"
    )
    speed.add_argument("--batches", type=int, default=20, help="batches to time")
    speed.add_argument("--accelerator", default="auto", help="Fabric's: auto, cpu, cuda")
    speed.add_argument(
        "--threads", type=whole_number(0), default=0, help="CPU threads; 0: torch's choice"
    )


def convert(arguments: argparse.Namespace) -> int:
    """Write another layout of a checkpoint; returns the exit code."""
    from cfpose_training.config import load_recipe
    from cfpose_training.conversion import export_state, load_foreign, save_adopted, save_state
    from cfpose_training.graph_weights import graph_spec
    from cfpose_training.nets.hrnet import HRNET_S, HRNET_W32, HRNET_W48
    from cfpose_training.pose_training import pose_spec

    source, target = arguments.source, arguments.output
    if arguments.to is not None:
        state, dropped = export_state(source, arguments.to)
        save_state(target, state, arguments.to)
    else:
        adopted = load_foreign(source)
        expected = {"w32": HRNET_W32, "w48": HRNET_W48, "s": HRNET_S}.get(arguments.network)
        if expected not in (None, adopted.backbone):
            raise ArtifactError(f"{source} is an {adopted.backbone}, expected {arguments.network}")
        spec = None
        if arguments.recipe is not None:
            spec = pose_spec(load_recipe(arguments.recipe))
        elif source.suffix == ".onnx":
            spec = graph_spec(source)
        save_adopted(adopted, target, name=source.stem, spec=spec)
        dropped = adopted.dropped
        if not adopted.has_head:
            print(f"{source} has no SimCC head: {target} is a backbone for stage1 --init")
        if adopted.filled:
            print(f"{len(adopted.filled)} batch counters are not in the file; they start at 0")
    for key in dropped:
        print(f"dropped {key}")
    print(f"wrote {target}")
    return 0


def data(arguments: argparse.Namespace) -> int:
    """Run an action of `data`; returns the exit code."""
    return {"check": _check, "speed": _speed}[arguments.action](arguments)


def _check(arguments: argparse.Namespace) -> int:
    from cfpose_training.config import load_recipe
    from cfpose_training.data_check import check_known, check_recipe
    from cfpose_training.pose_training import pose_spec

    if arguments.recipe is None:
        found = check_known(arguments.folder)
    else:
        recipe = load_recipe(arguments.recipe)
        found = check_recipe(recipe, arguments.folder, pose_spec(recipe).skeleton)
    print(found.text)
    return 0 if found.is_usable else 1


def _speed(arguments: argparse.Namespace) -> int:
    from cfpose_training.config import load_recipe
    from cfpose_training.loop import RunOptions
    from cfpose_training.speed import measure_speed

    speed = measure_speed(
        load_recipe(arguments.recipe),
        arguments.data_root,
        RunOptions(Path(), accelerator=arguments.accelerator, threads=arguments.threads),
        cache=arguments.cache,
        workers=arguments.workers,
        count=arguments.batches,
    )
    print(speed.text)
    return 0
