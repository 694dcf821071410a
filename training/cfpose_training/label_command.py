"""The command `label`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfpose_training.file_commands import Commands


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
    from cfpose_training.labelling import LabelRules

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
    from cfpose_training.label_run import LabelOptions, run_labelling
    from cfpose_training.labelling import LabelRules

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
    from cfpose_training.label_figures import tables_text

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
