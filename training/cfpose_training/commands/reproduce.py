"""The command `reproduce`: its arguments, and what runs it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cfpose_sdk.commands import number
from cfpose_sdk.errors import InputError
from cfpose_training.commands.data import names, whole_number

if TYPE_CHECKING:
    from cfpose_training.commands.data import Commands

MOST_SEEDS = 10
NO_FOLDER = Path("OUT")  # of a dry run that was given none


def add_reproduce(commands: Commands) -> None:
    """Add `reproduce` and its arguments."""
    parser = commands.add_parser(
        "reproduce",
        help="the paper's tables: train, export and measure by its protocol, beside its figures",
        formatter_class=argparse.HelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    # fmt: off
    add("dataset", choices=("coco", "crowdpose"))
    add("--table", type=int, choices=(1, 3, 4),
        help="coco has 1, crowdpose 3 (default) and 4, the ablation")
    add("--seeds", type=number(1, MOST_SEEDS, whole=True), default=1, metavar="N",
        help="train every student N times (default: 1)")
    add("--schemes", type=names, default=[], metavar="S,S",
        help="train these schemes of Table IV alone: baseline, 1 to 6")
    add("--data-root", type=Path, help="folder of the data set, as its authors lay it out")
    add("--out", type=Path, help="folder of this plan; the same command goes on in it")
    add("--boxes", default="", metavar="FILE|gt",
        help="person boxes to measure with; without it the published file in the data root")
    add("--imagenet", type=Path, metavar="FOLDER",
        help="HRNet's ImageNet weights (without it, imagenet in the data root)")
    add("--from-scratch", action="store_true",
        help="start from random weights, where the paper starts from ImageNet's")
    add("--from-official", type=Path, nargs="+", default=[], metavar="FILE",
        help="train nothing: measure published SimCC checkpoints (…w32….pth, …w48….pth)")
    add("--devices", type=whole_number(1), default=1, metavar="N",
        help="run N steps side by side, each on a device of its own (default: 1)")
    add("--accelerator", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--threads", type=whole_number(0), default=0, help="CPU threads of a step; 0: its choice")
    add("--cache", type=Path, metavar="FOLDER|none",
        help="decoded photos, as of cfpose-train stage1")
    add("--dry-run", action="store_true",
        help="print targets, steps and estimated cost, and stop; needs neither data nor GPU")
    add("--tflops", type=number(0.001), metavar="T",
        help="--dry-run: hours on a card that sustains T TFLOP/s")
    add("--miniature", action="store_true",
        help="the whole plan in minutes, on drawn people and with tiny networks; needs no data")
    # fmt: on


def run(arguments: argparse.Namespace) -> int:
    """Run `reproduce`; returns the exit code."""
    from cfpose_training.reproduce.dry_run import describe
    from cfpose_training.reproduce.plan import Options
    from cfpose_training.reproduce.run import planned, reproduce
    from cfpose_training.reproduce.targets import TABLES

    dataset, out, data_root = arguments.dataset, arguments.out, arguments.data_root
    dry_run, miniature, tflops = arguments.dry_run, arguments.miniature, arguments.tflops
    tables = {table.number: table for table in TABLES[dataset]}
    number = min(tables) if arguments.table is None else arguments.table
    if number not in tables:
        raise InputError(
            f"--table {number} is not of {dataset}; it has {', '.join(map(str, tables))}"
        )
    if arguments.from_official and dataset != "coco":
        raise InputError("--from-official is for coco: SimCC published no weights for CrowdPose")
    if not dry_run:
        _need("--out", out)
        if not miniature:
            _need("--data-root", data_root)
    options = Options(
        dataset=dataset,
        table=tables[number],
        out=out or NO_FOLDER,
        data_root=data_root or Path("DATA"),
        seeds=tuple(range(1, arguments.seeds + 1)),
        schemes=tuple(arguments.schemes),
        boxes=arguments.boxes,
        imagenet=arguments.imagenet,
        from_scratch=arguments.from_scratch,
        official=tuple(arguments.from_official),
        devices=arguments.devices,
        accelerator=arguments.accelerator,
        threads=arguments.threads,
        cache=arguments.cache,
        miniature=miniature,
    )
    if dry_run:
        options, plan, recipe = planned(options)
        print(describe(plan, options, recipe, tflops))
        return 0
    print(reproduce(options))
    print(f"wrote {options.out / 'table.md'}, table.csv, table.json")
    return 0


def _need(option: str, value: Path | None) -> None:
    if value is None:
        raise InputError(f"{option} is missing; only --dry-run does without it")
