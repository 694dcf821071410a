"""`cfpose predict` and `cfpose doctor`.

predict exits 0 when every source was read, 1 when some were not, 2 when none was.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import cv2

import cfpose_sdk
from cfpose_sdk.backends import Device
from cfpose_sdk.doctor import describe, examine
from cfpose_sdk.errors import BackendError, InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import write_file
from cfpose_sdk.frames import expand, is_url, is_video
from cfpose_sdk.records import ROW_FIELDS
from cfpose_sdk.results import Poses

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_STOP_KEYS = (27, ord("q"))  # escape, q


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Raises CfposeError on bad input."""
    options = _parser().parse_args(argv)
    code: int = options.run(options)
    return code


def _parser() -> argparse.ArgumentParser:
    shown = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="cfpose", description="Human poses in photos and videos.")
    parser.add_argument("--version", action="version", version=f"cfpose {cfpose_sdk.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    predict = commands.add_parser("predict", help="find poses", formatter_class=shown)
    predict.set_defaults(run=_predict)
    predict.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="photo, folder, glob, video, URL, camera index"
    )
    predict.add_argument("--model", metavar="M", help="exported model; None is the bundled one")
    predict.add_argument("--detector", metavar="D", help="person finder; None is the bundled one")
    predict.add_argument("--device", choices=get_args(Device), default="auto", help="where to run")
    predict.add_argument("--save", metavar="DIR", type=Path, help="write pictures with the poses")
    predict.add_argument("--coco", metavar="F.json", help="write COCO keypoint results")
    predict.add_argument("--json", metavar="F.json", help="write all that is known of each image")
    predict.add_argument("--csv", metavar="F.csv", help="write one row a person and joint")
    predict.add_argument("--show", action="store_true", help="open a window; q or escape stops")

    doctor = commands.add_parser("doctor", help="say what works here", formatter_class=shown)
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _doctor(options: argparse.Namespace) -> int:
    report = examine()
    print(json.dumps(report, indent=2) if options.json else describe(report))
    return 0 if report["ok"] else 1


def _predict(options: argparse.Namespace) -> int:
    sources = [part for source in options.sources for part in _parts(source)]
    if options.save is not None:
        _refuse_overwriting(sources, options.save)
    harvest = _Harvest(options.save, options.coco, options.json, options.csv)
    failed = 0
    with PoseEstimator(
        options.model, detector=options.detector, device=options.device
    ) as estimator:
        for number, source in enumerate(sources, start=1):
            _progress(number, len(sources))
            try:
                found = _open(estimator, source)
            except InputError as error:
                failed += 1
                print(f"cfpose: {error}", file=sys.stderr)
                continue
            if not _take(found, harvest, show=options.show, still=_is_still(source)):
                break
    harvest.write()
    if failed:
        print(f"cfpose: {failed} of {len(sources)} sources could not be used", file=sys.stderr)
    return 0 if not failed else 1 if harvest.count else 2


def _take(found: Iterator[Poses], harvest: _Harvest, *, show: bool, still: bool) -> bool:
    """Harvest all frames of one source; False when the viewer wants to stop."""
    for poses in found:
        harvest.add(poses)
        if show and not _show(poses, still):
            return False
    return True


def _parts(source: str) -> list[Path | str | int]:
    """A command-line SOURCE → photos, videos, URLs and camera indices."""
    if is_url(source):
        return [source]
    if source.isdigit() and not Path(source).exists():
        return [int(source)]
    return list(expand(source))


def _is_still(source: Path | str | int) -> bool:
    return isinstance(source, Path) and not is_video(source)


def _open(estimator: PoseEstimator, source: Path | str | int) -> Iterator[Poses]:
    """Poses of a photo now, of a video frame by frame. Raises InputError when it is unusable."""
    if isinstance(source, Path) and _is_still(source):
        return iter([estimator.predict(source)])
    return estimator.stream(source)


@dataclass
class _Harvest:
    """What the files will hold. Records, not Poses: those would keep every photo in memory."""

    save: Path | None
    coco: str | None
    json: str | None
    csv: str | None
    count: int = 0
    results: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    taken: set[Path] = field(default_factory=set)

    def add(self, poses: Poses) -> None:
        count, milliseconds = len(poses), poses.speed_ms["total"]
        people = "1 person" if count == 1 else f"{count} people"
        print(f"{poses.source}: {people}, {milliseconds:.1f} ms")
        self.count += 1
        if self.coco:
            self.results += poses.to_coco()
        if self.json:
            self.images.append(poses.to_dict())
        if self.csv:
            self.rows += poses.rows()
        if self.save is not None:
            poses.save(self._place(self.save, Path(str(poses.source))))

    def write(self) -> None:
        if self.coco:
            write_file(self.coco, json.dumps(self.results))
        if self.json:
            write_file(self.json, json.dumps(self.images, indent=1, ensure_ascii=False))
        if self.csv:
            text = io.StringIO()
            writer = csv.DictWriter(text, ROW_FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_file(self.csv, text.getvalue())

    def _place(self, folder: Path, name: Path) -> Path:
        """A name in the folder that no earlier picture of this run has."""
        suffix = name.suffix if name.suffix.lower() in _PICTURE_SUFFIXES else ".jpg"
        place, count = folder / f"{name.stem}{suffix}", 1
        while place in self.taken:
            count += 1
            place = folder / f"{name.stem}-{count}{suffix}"
        self.taken.add(place)
        return place


def _refuse_overwriting(sources: Sequence[Path | str | int], folder: Path) -> None:
    for source in sources:
        if isinstance(source, Path) and source.resolve().parent == folder.resolve():
            raise InputError(
                f"--save {folder} is the folder of {source.name}, which would be overwritten; "
                f"choose another"
            )


def _show(poses: Poses, still: bool) -> bool:
    """Show one picture, a still until a key is hit; False when the viewer wants to stop."""
    try:
        cv2.imshow("cfpose", poses.plot())
        return (cv2.waitKey(0 if still else 1) & 0xFF) not in _STOP_KEYS
    except cv2.error as error:
        raise BackendError(
            "--show needs a display and an OpenCV with windows; use --save, or replace "
            "opencv-python-headless by opencv-python"
        ) from error


def _progress(number: int, total: int) -> None:
    """A line on a terminal whose output is piped away; otherwise the output itself tells."""
    if total > 1 and sys.stderr.isatty() and not sys.stdout.isatty():
        print(f"\r{number}/{total}", end="\n" if number == total else "", file=sys.stderr)
