"""The commands about data and files: `convert`, `data check`, `data speed` and `label`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

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
    from cfpose_training.checkpoints.convert import (
        export_state,
        load_foreign,
        save_adopted,
        save_state,
    )
    from cfpose_training.checkpoints.from_graph import graph_spec
    from cfpose_training.config import load_recipe
    from cfpose_training.nets.hrnet import HRNET_S, HRNET_W32, HRNET_W48
    from cfpose_training.pose.train import pose_spec

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
    from cfpose_training.data.check import check_known, check_recipe
    from cfpose_training.pose.train import pose_spec

    if arguments.recipe is None:
        found = check_known(arguments.folder)
    else:
        recipe = load_recipe(arguments.recipe)
        found = check_recipe(recipe, arguments.folder, pose_spec(recipe).skeleton)
    print(found.text)
    return 0 if found.is_usable else 1


def _speed(arguments: argparse.Namespace) -> int:
    from cfpose_training.config import load_recipe
    from cfpose_training.pose.speed import measure_speed
    from cfpose_training.run.loop import RunOptions

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


def add_label(commands: Commands) -> None:
    """Add the arguments of `label`."""
    parser = commands.add_parser(
        "label", help="keypoints for people without any, by a model that is asked several times"
    )
    parser.add_argument(
        "--data-root", type=Path, required=True, help="folder of --annotations and --images"
    )
    parser.add_argument("--images", required=True, help="folder of the photos, below the data root")
    parser.add_argument(
        "--annotations", help="COCO keypoint file of these photos, below the data root"
    )
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--only-unlabelled", action="store_true", help="its people without a labelled joint"
    )
    who.add_argument(
        "--fill", action="store_true", help="add the joints that nobody in it has, keep the rest"
    )
    who.add_argument(
        "--measure", action="store_true", help="write how near labels come to its own, no labels"
    )
    parser.add_argument("--labeller", type=Path, required=True, help="MoveNet ONNX that labels")
    parser.add_argument(
        "--detector", type=Path, help="model that finds the people of photos without annotations"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file to write; OUT.journal beside it"
    )
    parser.add_argument("--licence", default="", help="terms of the labels, for the file's info")
    _add_run(parser)
    _add_rules(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="go on with the run of OUT.journal")
    numbers = {
        "max_minutes": (math.inf, "stop after this long, resumable"),
        "box_score": (0.4, "the detector's boxes count from here"),
        "holdout_every": (0, "leave out annotated photos with id %% N == 0; 0: none"),
        "min_side": (32.0, "leave out boxes with a longer side below, px"),
        "limit": (0, "about so many people (photos without annotations); 0: all"),
        "views": (4, "looks at each person, 1 to 6"),
        "threads": (0, "CPU threads; 0: the runtime's choice"),
        "weight": (0.5, "of a labeller's joint in the loss, in [0, 1]"),
    }
    for name, (default, text) in numbers.items():
        parser.add_argument(_flag(name), type=type(default), default=default, help=text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _add_rules(parser: argparse.ArgumentParser) -> None:
    from cfpose_training.labels.rules import LabelRules

    rules = LabelRules()
    helps = {
        "min_score": "of a joint, mean of the views",
        "min_agreement": "of a joint, mean OKS between its views",
        "min_joints": "kept joints that make a person",
        "box_margin": "how far outside its box a joint may lie, in longer sides",
        "max_offset": "of the middle of the kept joints from the box's, in its sides",
        "neighbour_oks": "nearer to another person's pose than this: that person's",
        "given_oks": "--fill: mean OKS with the given joints",
    }
    for name, text in helps.items():
        default = getattr(rules, name)
        parser.add_argument(_flag(name), type=type(default), default=default, help=text)
    parser.add_argument(
        "--average", choices=("mean", "median"), default=rules.average, help="of the views"
    )


def label(arguments: argparse.Namespace) -> int:
    """Run `label`; returns the exit code."""
    from cfpose_sdk.errors import InputError
    from cfpose_training.labels.rules import LabelRules
    from cfpose_training.labels.run import LabelOptions, run_labelling

    modes = {
        "unlabelled": arguments.only_unlabelled,
        "fill": arguments.fill,
        "measure": arguments.measure,
    }
    who: Any = next((name for name, chosen in modes.items() if chosen), None)
    if (arguments.annotations is None) == (who is not None):
        raise InputError(
            "--annotations goes with one of --only-unlabelled, --fill and --measure; "
            "photos without annotations need --detector instead"
        )
    same = ("box_score", "views", "weight", "licence", "holdout_every", "min_side", "limit",
            "resume", "max_minutes", "out", "labeller", "detector")  # fmt: skip
    root = arguments.data_root
    content = run_labelling(
        LabelOptions(
            images=root / arguments.images,
            annotations=None if arguments.annotations is None else root / arguments.annotations,
            who=who or "unlabelled",
            rules=LabelRules(**{n: getattr(arguments, n) for n in LabelRules.__dataclass_fields__}),
            threads=arguments.threads or None,
            **{name: getattr(arguments, name) for name in same},
        )
    )
    return _report(content, arguments)


def _report(content: dict[str, Any] | None, arguments: argparse.Namespace) -> int:
    from cfpose_training.labels.quality import tables_text

    if content is None:
        print("time is up; run the same command with --resume to go on")
        return 0
    info = content["info"]
    if arguments.measure:
        print(tables_text({name: rows for name, rows in content.items() if name != "info"}))
        print(f"{info['people']} people in {info['photos']} photos")
    else:
        print(
            f"{info['joints']} joints of {info['people']} people, "
            f"{info['people_looked_at']} looked at"
        )
    print(f"wrote {arguments.out}")
    return 0
