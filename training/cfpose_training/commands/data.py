"""The commands about data and files: `convert`, `data check`, `data speed` and `label`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cfpose_sdk.commands import number
from cfpose_sdk.errors import ArtifactError

if TYPE_CHECKING:
    from cfpose_training.data.crop_dataset import DataOptions
    from cfpose_training.labels.people import Who

    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


UNCACHED = Path("none")  # of --cache: photos are read at each use


def minutes(text: str) -> float:
    """A type of argparse's arguments: a number above 0, infinity included."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of minutes above 0")
    return number


def names(text: str) -> list[str]:
    """A type of argparse's arguments: names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str) -> list[int]:
    """A type of argparse's arguments: whole numbers with commas between them."""
    return [whole_number(0)(name) for name in names(text)]


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


def given(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The values of some options by name: the keywords of a call."""
    return {name: getattr(arguments, name) for name in names}


def data_options(*, data_root: Path, cache: Path | None) -> DataOptions:
    """Where a run's photos are; `cache` as of --cache."""
    from cfpose_training.data.crop_dataset import DataOptions
    from cfpose_training.data.photo_cache import photo_folder

    if cache is None:
        return DataOptions(data_root, photo_folder(data_root))
    return DataOptions(data_root, None if cache == UNCACHED else cache)


def add_convert(commands: Commands) -> None:
    """Add `convert` and its arguments."""
    parser = commands.add_parser(
        "convert",
        help="convert a checkpoint of SimCC, HRNet or mmpose into ours, or ours into theirs",
    )
    parser.set_defaults(run=convert)
    parser.add_argument("source", type=Path, help="their .pth, or our .safetensors or .onnx")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--to", choices=("simcc", "mmpose"), help="write our checkpoint in this layout"
    )
    parser.add_argument("--network", choices=("w32", "w48", "s"), help="accept this HRNet only")
    parser.add_argument("--recipe", type=Path, help="its name, joints and licence")


def add_data(commands: Commands) -> Commands:
    """Add `data`, its actions and their arguments; gives the actions, for more of them."""
    actions: Commands = commands.add_parser(
        "data", help="check, convert or draw annotations, or time the loader"
    ).add_subparsers(dest="action", required=True)
    check = actions.add_parser(
        "check",
        help="list which data sets are here, which are missing, and what is wrong with them; "
        "photos are not decoded; exit code 1 when something is missing or wrong",
    )
    check.set_defaults(run=check_data)
    check.add_argument("folder", type=Path, help="data root")
    check.add_argument("--recipe", type=Path, help="check what this recipe needs")
    fetch = actions.add_parser(
        "fetch",
        help="bring the paper's public files into a data root, and say how to get the others; exit "
        "code 1 when some are to be got by hand",
    )
    fetch.set_defaults(run=fetch_data)
    fetch.add_argument("what", choices=("coco", "crowdpose", "boxes", "imagenet-hrnet"))
    fetch.add_argument("--into", type=Path, required=True, help="data root")
    fetch.add_argument("--mirror", default="", help="another host than the publishers'")
    speed = actions.add_parser(
        "speed", help="measure samples per second of stage 1's loader and of its network"
    )
    speed.set_defaults(run=measure_data_speed)
    speed.add_argument("--recipe", type=Path, required=True, help="TOML file of the recipe")
    speed.add_argument("--data-root", type=Path, required=True, help="folder of its paths")
    speed.add_argument(
        "--cache", type=Path, help="decoded photos of a run; none: decode a few photos first"
    )
    speed.add_argument(
        "--workers", type=whole_number(0), help="loader processes; none: as in the recipe"
    )
    speed.add_argument(
        "--batches", type=number(1, whole=True), default=20, help="number of batches to time"
    )
    speed.add_argument("--accelerator", default="auto", help="Fabric's: auto, cpu, cuda")
    speed.add_argument(
        "--threads", type=whole_number(0), default=0, help="CPU threads; 0: PyTorch chooses"
    )
    return actions


def convert(arguments: argparse.Namespace) -> int:
    """Run `convert`; returns the exit code."""
    source, target, recipe = arguments.source, arguments.output, arguments.recipe
    layout, network = arguments.to, arguments.network

    if layout is None:
        dropped = _convert_into_ours(source, target, network=network, recipe=recipe)
    else:
        from cfpose_training.checkpoints.convert import export_state, save_state

        state, dropped = export_state(source, layout)
        save_state(target, state, layout)
    for key in dropped:
        print(f"dropped {key}")
    print(f"wrote {target}")
    return 0


def _convert_into_ours(
    source: Path, target: Path, *, network: str | None, recipe: Path | None
) -> tuple[str, ...]:
    """Write `source` as a checkpoint of cfpose; returns the keys that have no place in it."""
    from cfpose_training.checkpoints.convert import load_foreign, save_adopted
    from cfpose_training.checkpoints.files import save_pose
    from cfpose_training.checkpoints.from_graph import graph_spec
    from cfpose_training.checkpoints.movenet import read_own_graph
    from cfpose_training.config import load_recipe
    from cfpose_training.nets.hrnet import HRNET_S, HRNET_W32, HRNET_W48
    from cfpose_training.pose.train import pose_spec

    spec = None if recipe is None else pose_spec(load_recipe(recipe))
    if network is None and (own := read_own_graph(source, spec)) is not None:
        carried = graph_spec(source)
        spec = carried if spec is None else replace(spec, started_from=carried.started_from)
        save_pose(target, own, spec)
        print(
            f"{target} keeps no calibration, since training on changes it: `fit`, `stage2` and "
            f"`finish` calibrate anew"
        )
        return ()
    adopted = load_foreign(source)
    expected = {None: None, "w32": HRNET_W32, "w48": HRNET_W48, "s": HRNET_S}[network]
    if expected not in (None, adopted.backbone):
        raise ArtifactError(f"{source} is an {adopted.backbone}, expected {network}")
    if spec is None and source.suffix == ".onnx":
        spec = graph_spec(source)
    save_adopted(adopted, target, name=source.stem, spec=spec)
    if not adopted.has_head:
        print(f"{source} has no SimCC head: {target} is a backbone for stage1 --init")
    if adopted.filled:
        print(f"{len(adopted.filled)} batch counters are not in the file; they start at 0")
    return adopted.dropped


def check_data(arguments: argparse.Namespace) -> int:
    """Run `data check`; returns the exit code."""
    from cfpose_training.config import load_recipe
    from cfpose_training.data.check import check_known, check_recipe

    folder, recipe_file = arguments.folder, arguments.recipe

    if recipe_file is None:
        check = check_known(folder)
    else:
        check = check_recipe(load_recipe(recipe_file), folder)
    print(check.text)
    return 0 if check.is_usable else 1


def fetch_data(arguments: argparse.Namespace) -> int:
    """Run `data fetch`; returns the exit code."""
    from cfpose_training.archives.catalogue import SETS
    from cfpose_training.archives.fetch import fetch_set

    what, root, mirror = arguments.what, arguments.into, arguments.mirror

    return 1 if fetch_set(SETS[what], root, mirror=mirror) else 0


def measure_data_speed(arguments: argparse.Namespace) -> int:
    """Run `data speed`; returns the exit code."""
    from cfpose_training.config import load_recipe
    from cfpose_training.pose.speed import measure_speed
    from cfpose_training.run.loop import RunOptions

    recipe, data_root, cache = load_recipe(arguments.recipe), arguments.data_root, arguments.cache
    workers, batches = arguments.workers, arguments.batches
    run = RunOptions(Path(), **given(arguments, ("accelerator", "threads")))

    speed = measure_speed(recipe, data_root, run, cache=cache, workers=workers, count=batches)
    print(speed.text)
    return 0


def add_label(commands: Commands) -> None:
    """Add `label` and its arguments."""
    parser = commands.add_parser(
        "label", help="write keypoints for people without any, with a labelling model"
    )
    parser.set_defaults(run=label)
    parser.add_argument(
        "--data-root", type=Path, required=True, help="folder of --annotations and --images"
    )
    parser.add_argument("--images", required=True, help="folder of the photos, below --data-root")
    parser.add_argument(
        "--annotations", help="COCO keypoint file of these photos, below --data-root"
    )
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--only-unlabelled", action="store_true", help="label its people without any labelled joint"
    )
    who.add_argument(
        "--fill",
        action="store_true",
        help="add the joints that it labels for no person; keep all that it labels",
    )
    who.add_argument(
        "--measure",
        action="store_true",
        help="compare new labels with its own and write the figures; write no labels",
    )
    parser.add_argument(
        "--labeller", required=True, nargs="+", metavar="M",
        help="models that label together: artifacts, checkpoints, or foreign networks with their "
        "preset (movenet:F.onnx)",
    )  # fmt: skip
    parser.add_argument(
        "--detector", type=Path, help="detector that finds the people in photos without annotations"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file to write; OUT.journal beside it"
    )
    parser.add_argument(
        "--licence", "--license", default="", help="licence of the labels, for the file's info"
    )
    _add_run(parser)
    _add_rules(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="continue the run of OUT.journal")
    numbers: dict[str, tuple[Callable[[str], float], float, str]] = {
        "max_minutes": (minutes, math.inf, "stop after this many minutes; --resume continues"),
        "box_score": (number(0, 1), 0.4, "lowest score of the detector's boxes"),
        "holdout_every": (
            number(0, whole=True),
            0,
            "leave out annotated photos with id %% N == 0; 0: leave out none",
        ),
        "min_side": (
            number(0),
            32.0,
            "leave out boxes whose longer side is below this many pixels",
        ),
        "limit": (
            number(0, whole=True),
            0,
            "label about this many people (without annotations: photos); 0: all",
        ),
        "views": (number(1, 6, whole=True), 4, "views of each person, 1 to 6"),
        "threads": (number(0, whole=True), 0, "CPU threads; 0: the runtime chooses"),
        "weight": (number(0, 1), 0.5, "weight of the labeller's joints in the loss, in [0, 1]"),
    }
    for name, (kind, default, text) in numbers.items():
        parser.add_argument(_flag(name), type=kind, default=default, help=text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _add_rules(parser: argparse.ArgumentParser) -> None:
    from cfpose_training.labels.rules import LabelRules

    rules = LabelRules()
    helps = {
        "min_score": "lowest score of a joint, mean over labellers and views",
        "min_agreement": "lowest agreement of a joint: mean OKS between labellers and views",
        "min_joints": "fewest kept joints of a person",
        "box_margin": "how far outside its box a joint may lie, as a share of the longer side",
        "max_offset": "largest distance between the middles of the joints and of the box, as a "
        "share of its sides",
        "neighbour_oks": "leave out a pose whose OKS with another person's pose is above this",
        "given_oks": "--fill: lowest mean OKS with the given joints",
    }
    ranges = {
        "min_joints": number(1, whole=True), "box_margin": number(0), "max_offset": number(0),
    }  # fmt: skip
    for name, text in helps.items():
        kind = ranges.get(name, number(0, 1))
        parser.add_argument(_flag(name), type=kind, default=getattr(rules, name), help=text)
    parser.add_argument(
        "--average",
        choices=("mean", "median"),
        default=rules.average,
        help="of labellers and views; mean: by score and precision",
    )


def label(arguments: argparse.Namespace) -> int:
    """Run `label`; returns the exit code."""
    from cfpose_training.labels.labeller import LabellerFile
    from cfpose_training.labels.rules import LabelRules
    from cfpose_training.labels.run import LabelOptions, run_labelling

    root, images, annotations = arguments.data_root, arguments.images, arguments.annotations
    out, threads, labellers = arguments.out, arguments.threads, arguments.labeller
    who = _who(annotations, **given(arguments, ("only_unlabelled", "fill", "measure")))
    rules = LabelRules(**given(arguments, LabelRules.__dataclass_fields__))
    same = ("box_score", "views", "weight", "licence", "holdout_every", "min_side", "limit",
            "resume", "max_minutes", "detector")  # fmt: skip
    options = LabelOptions(
        out=out,
        labellers=tuple(map(LabellerFile.of, labellers)),
        images=root / images,
        annotations=None if annotations is None else root / annotations,
        who=who or "unlabelled",
        rules=rules,
        threads=threads or None,
        **given(arguments, same),
    )

    return _report(run_labelling(options), options.who, out)


def _who(
    annotations: str | None, *, only_unlabelled: bool, fill: bool, measure: bool
) -> Who | None:
    """Whose boxes are labelled; None where a detector finds them."""
    from cfpose_sdk.errors import InputError

    modes: dict[Who, bool] = {"unlabelled": only_unlabelled, "fill": fill, "measure": measure}
    who = next((name for name, chosen in modes.items() if chosen), None)
    if (annotations is None) == (who is not None):
        raise InputError(
            "--annotations goes with one of --only-unlabelled, --fill and --measure; "
            "photos without annotations need --detector instead"
        )
    return who


def _report(content: dict[str, Any] | None, who: Who, out: Path) -> int:
    from cfpose_training.labels.quality import tables_text

    if content is None:
        print("time is up; run the same command with --resume to go on")
        return 0
    info = content["info"]
    if who == "measure":
        print(tables_text({name: rows for name, rows in content.items() if name != "info"}))
        print(f"{info['people']} people in {info['photos']} photos")
    else:
        print(
            f"{info['joints']} joints of {info['people']} people, "
            f"{info['people_looked_at']} looked at"
        )
    print(f"wrote {out}")
    return 0
