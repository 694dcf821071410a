"""Commands for data of one's own: `init` proposes a recipe, `fit` runs it; `data convert, show`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from cfpose_training.commands.data import given, minutes, names, whole_number

if TYPE_CHECKING:
    from cfpose_training.checkpoints.initial import Initial
    from cfpose_training.commands.data import Commands

SIZES = {"s": "cfpose-s", "m": "cfpose-m", "w32": ""}  # and what each starts from


def add_fit(commands: Commands) -> None:
    """Add `init` and `fit` and their arguments."""
    _add_init(commands)
    fit = commands.add_parser(
        "fit", help="run a recipe to its artifact: labels, stages, calibration, export, table"
    )
    fit.set_defaults(run=run)
    fit.add_argument("--recipe", type=Path, required=True, help="TOML file, as init writes it")
    fit.add_argument("--out", type=Path, required=True, help="folder of this run and its artifact")
    fit.add_argument(
        "--max-minutes", type=minutes, default=math.inf,
        help="plan the epochs so that all ends within this many minutes",
    )  # fmt: skip
    fit.add_argument(
        "--data-root", type=Path, help="folder of the recipe's paths; none: as the recipe says"
    )
    fit.add_argument("--accelerator", default="auto", help="Fabric's: auto, cpu, cuda")
    fit.add_argument(
        "--threads", type=whole_number(0), default=0, help="CPU threads; 0: PyTorch chooses"
    )


def _add_init(commands: Commands) -> None:
    init = commands.add_parser(
        "init", help="look at annotations of your own and write a recipe for them"
    )
    init.set_defaults(run=propose)
    init.add_argument(
        "--annotations", type=Path, required=True, help="COCO keypoint file of your people"
    )
    init.add_argument("--images", type=Path, required=True, help="folder of its photos")
    init.add_argument(
        "--from", dest="start", metavar="MODEL",
        help="start from a bundled model (default, cfpose-s, cfpose-m), or from a checkpoint or "
        "graph; none: as --size says",
    )  # fmt: skip
    init.add_argument(
        "--size", choices=tuple(SIZES), default="s",
        help="network: that of cfpose-s or cfpose-m, or HRNet-W32",
    )  # fmt: skip
    init.add_argument("-o", "--output", type=Path, required=True, help="TOML file to write")
    init.add_argument(
        "--no-estimate", action="store_true", help="do not time the network on this machine"
    )


def propose(arguments: argparse.Namespace) -> int:
    """Run `init`; returns the exit code."""
    from cfpose_bench.data.annotations import read_annotations
    from cfpose_sdk.errors import InputError
    from cfpose_sdk.files import what_is_at, write_file
    from cfpose_training.config import load_recipe
    from cfpose_training.fit.facts import look_at, swapped_note
    from cfpose_training.fit.proposal import Proposal, write_text
    from cfpose_training.skeletons import skeleton_of

    annotations, images, target = arguments.annotations, arguments.images, arguments.output
    size, asked, estimate = arguments.size, arguments.start, not arguments.no_estimate

    if what_is_at(target) != "nothing":
        raise InputError(f"{target} is there already; give another -o, or move it away")
    asked = SIZES[size] if asked is None else asked
    start, init = _start(asked, size)
    category = read_annotations(annotations)["categories"][0]
    skeleton = skeleton_of(category, str(annotations))
    facts = look_at(annotations, images)
    proposal = Proposal(target.stem, facts, skeleton, start, annotations, images, target, init)
    write_file(target, write_text(proposal))
    recipe = load_recipe(target)
    print(facts.text)
    if note := swapped_note(start, annotations, images):
        print(f"NOTE: {note}")
    if start.joints:
        known = sum(name is not None for name in _known(skeleton.keypoints, start.joints))
        print(f"the start, {asked}, knows {known} of the {len(skeleton)} joints by name")
    if estimate:
        from cfpose_training.fit.estimate import estimate_text

        print(estimate_text(recipe, target))
    print(f"wrote {target}; next:")
    out = Path("runs") / target.stem
    print(f"  cfpose-train data show --annotations {annotations} --images {images} -o show.jpg")
    print(f"  cfpose-train fit --recipe {target} --out {out}")
    print(f"  cfpose predict PHOTO --model {out / target.stem}.onnx --save out")
    return 0


def _known(names: tuple[str, ...], given: tuple[str, ...]) -> tuple[int | None, ...]:
    from cfpose_training.skeletons import columns

    return columns(names, given)


def _start(asked: str, size: str) -> tuple[Initial, str]:
    """The network to train, and the start as the recipe names it; "": it starts from nothing."""
    from cfpose_sdk.backends.bundled import model_file
    from cfpose_training.checkpoints.initial import Initial, open_initial
    from cfpose_training.nets.hrnet import HRNET_W32

    if not asked:
        return Initial(Path(), HRNET_W32, "simcc", None, ()), ""
    path = model_file(asked)
    return open_initial(path), asked if str(path) != asked else str(path.resolve())


def run(arguments: argparse.Namespace) -> int:
    """Run `fit`; returns the exit code."""
    from cfpose_training.fit.pipeline import FitOptions, run_fit

    recipe, out, max_minutes = arguments.recipe, arguments.out, arguments.max_minutes
    data_root, accelerator, threads = (
        arguments.data_root,
        arguments.accelerator,
        arguments.threads,
    )

    fitted = run_fit(recipe, FitOptions(out, max_minutes, data_root, accelerator, threads))
    if fitted is None:
        print("time is up; run the same command again to go on")
        return 0
    print(fitted.text)
    print(f"wrote {fitted.artifact}")
    return 0


def add_own(actions: Commands) -> None:
    """Add the actions of `data` for annotations of one's own."""
    convert = actions.add_parser(
        "convert", help="write annotations of other tools, or that do not fit their photos, as COCO"
    )
    convert.set_defaults(run=convert_own)
    convert.add_argument(
        "source", type=Path, help="Ultralytics' .yaml, Label Studio's .json, or a COCO .json"
    )
    convert.add_argument("-o", "--output", type=Path, required=True, help="COCO file to write")
    convert.add_argument("--images", type=Path, help="folder of the photos, to fit them")
    convert.add_argument(
        "--joints", type=names, default=[], help="names of the joints, with commas between them"
    )
    show = actions.add_parser("show", help="draw annotated people on their photos")
    show.set_defaults(run=show_own)
    show.add_argument("--annotations", type=Path, required=True, help="COCO keypoint file")
    show.add_argument("--images", type=Path, required=True, help="folder of its photos")
    # not `output`, of which no picture that is there is replaced: this one is looked at again
    show.add_argument(
        "-o", "--output", dest="picture", type=Path, required=True, help="picture to write"
    )
    show.add_argument("--count", type=whole_number(1), default=12, help="number of photos")


def convert_own(arguments: argparse.Namespace) -> int:
    """Run `data convert`; returns the exit code."""
    from cfpose_training.layouts.conversion import convert_annotations

    source, output = arguments.source, arguments.output

    lines = convert_annotations(source, output, **given(arguments, ("images", "joints")))
    print("\n".join([*lines, f"wrote {output}"]))
    return 0


def show_own(arguments: argparse.Namespace) -> int:
    """Run `data show`; returns the exit code."""
    from cfpose_training.layouts.conversion import show_annotations

    annotations, images, output = arguments.annotations, arguments.images, arguments.picture

    people = show_annotations(annotations, images, output, arguments.count)
    print(f"{people} people; wrote {output}")
    return 0
