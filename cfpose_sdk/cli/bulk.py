"""`cfpose bulk`: its options and help, and what it prints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, get_args

from cfpose_sdk.cli.predict import Progress
from cfpose_sdk.cli.serve import add_estimator, model_given
from cfpose_sdk.errors import InputError
from cfpose_sdk.files import check_output_folder, shown
from cfpose_sdk.serving.bulk import BulkOptions, photos_of, run_bulk
from cfpose_sdk.serving.shards import Counts, Format, ShardFolder

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_CODES = (
    "DIR holds plan.json, a file for each shard, which appears whole, and at the end summary.json. "
    "Each photo is one row; one that cannot be read has the reason in `error`. The same command "
    "goes on with a run that was stopped. exit codes: 0: every photo was read; 1: some were not; "
    "2: wrong use, or none could be read; 130: interrupted"
)


def add_bulk(commands: Commands) -> None:
    """Add `bulk` to the commands of `cfpose`."""
    command = commands.add_parser(
        "bulk",
        help="estimate the poses of many photos, in several processes, resumably",
        description="Estimate the poses of many photos into a folder of shards.",
        epilog=_CODES,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=_bulk)
    command.add_argument("sources", nargs="*", metavar="SOURCE", help="photo, folder or glob")
    command.add_argument(
        "--list", metavar="F.txt", action="append", default=[],
        help="file with a photo's path a line; - reads the standard input",
    )  # fmt: skip
    command.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="folder of the shards"
    )
    command.add_argument(
        "--format", choices=get_args(Format), default="jsonl",
        help="JSON lines, or Parquet (extra parquet)",
    )  # fmt: skip
    command.add_argument(
        "--workers", metavar="N", type=int, help="processes; None: one a core; on a GPU give 1"
    )
    command.add_argument(
        "--shard-size", metavar="N", type=int, default=BulkOptions.shard_size,
        help="photos of a shard",
    )  # fmt: skip
    command.add_argument(
        "--covariance", action="store_true", help="write each joint's covariance, too"
    )
    command.add_argument(
        "--ray", metavar="ADDRESS",
        help="run on this Ray cluster (extra ray); auto, local, or ray://HOST:PORT",
    )  # fmt: skip
    add_estimator(command)


def _bulk(options: argparse.Namespace) -> int:
    chosen = BulkOptions(
        model=model_given(options.model),
        detector=options.detector,
        device=options.device,
        max_people=options.max_people,
        workers=options.workers,
        threads=options.threads,
        shard_size=options.shard_size,
        covariance=options.covariance,
        precision=options.precision,
    )
    check_output_folder("--out", options.out)
    photos = photos_of(options.sources) + [p for file in options.list for p in _listed(file)]
    photos = list(dict.fromkeys(photos))
    shards = ShardFolder(options.out, options.format)
    with Progress("photos", len(photos)) as line:

        def on_shard(counts: Counts) -> None:
            for _ in range(counts.images):
                line.step()

        counts = run_bulk(photos, shards, chosen, ray=options.ray, on_shard=on_shard)
    print(f"{counts.images} photos, {counts.people} people, {counts.broken} broken: {options.out}")
    return 0 if not counts.broken else 1 if counts.broken < counts.images else 2


def _listed(file: str) -> list[str]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"--list {shown(file)} cannot be read: {error}") from error
    return [line for line in text.splitlines() if line.strip()]
