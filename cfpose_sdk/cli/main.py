"""`cfpose predict` and `cfpose doctor`.

predict exits 0 when every source was read to its end, 1 when some were not (the rest is in the
files), 2 when nothing could be read or the use was wrong, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import cfpose_sdk
from cfpose_sdk.backends import Device
from cfpose_sdk.cli.outputs import (
    CocoSink,
    CsvSink,
    JsonSink,
    OpenPoseFolderSink,
    OpenPoseFormat,
    OpenPoseSink,
    PictureSink,
    Sink,
)
from cfpose_sdk.cli.predict import Harvest, parts_of
from cfpose_sdk.diagnostics.doctor import describe, examine
from cfpose_sdk.errors import InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.streaming.stream import StreamOptions

_CODES = (
    "exit codes: 0 every source was read to its end; 1 some were not, the results of the rest are "
    "written; 2 nothing could be read, or wrong use, and no file is left; 130 interrupted (of a "
    "camera or URL the files are finished, of the rest none is left)"
)


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

    predict = commands.add_parser(
        "predict", help="find poses", formatter_class=shown, epilog=_CODES
    )
    predict.set_defaults(run=_predict)
    predict.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="photo, folder, glob, video, URL, camera index"
    )
    _add_models(predict)
    _add_outputs(predict)
    _add_video_options(predict)

    doctor = commands.add_parser("doctor", help="say what works here", formatter_class=shown)
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _add_models(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("--model", metavar="M", help="exported model; None is the bundled one")
    predict.add_argument("--detector", metavar="D", help="person finder; None is the bundled one")
    predict.add_argument("--device", choices=get_args(Device), default="auto", help="where to run")
    predict.add_argument(
        "--allow-fallback", action="store_true", help="run on the CPU when the GPU does not load"
    )


def _add_outputs(predict: argparse.ArgumentParser) -> None:
    predict.add_argument(
        "--save", metavar="DIR", type=Path, help="write photos and videos with the poses"
    )
    predict.add_argument("--coco", metavar="F.json", help="write COCO keypoint results")
    predict.add_argument("--json", metavar="F.json", help="write all that is known of each image")
    predict.add_argument("--csv", metavar="F.csv", help="write one row a person and joint")
    predict.add_argument(
        "--openpose",
        metavar="DIR|F.json",
        type=Path,
        help="write OpenPose JSON, one file a frame into a folder, or one list into a .json file",
    )
    predict.add_argument(
        "--openpose-format", choices=get_args(OpenPoseFormat), default="body25", help="its joints"
    )
    predict.add_argument("--show", action="store_true", help="open a window; q or escape stops")


def _add_video_options(predict: argparse.ArgumentParser) -> None:
    predict.add_argument(
        "--detect-every",
        metavar="N",
        type=int,
        default=1,
        help="look for people in each n-th frame",
    )
    predict.add_argument(
        "--track",
        action="store_true",
        help="number the people of a video, or of photos of one size",
    )
    predict.add_argument(
        "--smooth",
        action="store_true",
        help="One-Euro filter over each person of a video, which tracks too",
    )


def _doctor(options: argparse.Namespace) -> int:
    report = examine()
    print(json.dumps(report, indent=2) if options.json else describe(report))
    return 0 if report["ok"] else 1


def _predict(options: argparse.Namespace) -> int:
    # FFmpeg would print each damaged block of a video to stderr; what matters is said by cfpose
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    sources = [part for source in options.sources for part in parts_of(source)]
    if options.save is not None:
        _refuse_overwriting(sources, options.save)
    running = StreamOptions(
        detect_every=options.detect_every, track=options.track, smooth=options.smooth
    )
    with PoseEstimator(
        options.model,
        detector=options.detector,
        device=options.device,
        allow_fallback=options.allow_fallback,
    ) as estimator:
        return Harvest(estimator, _sinks(options), running, options.show).run(sources)


def _sinks(options: argparse.Namespace) -> list[Sink]:
    sinks: list[Sink] = []
    try:
        for sink in _opened(options):
            sinks.append(sink)
    except BaseException:
        for sink in sinks:
            sink.abandon()
        raise
    return sinks


def _opened(options: argparse.Namespace) -> Iterator[Sink]:
    if options.coco:
        yield CocoSink(options.coco)
    if options.json:
        yield JsonSink(options.json)
    if options.csv:
        yield CsvSink(options.csv)
    if options.openpose is not None:
        if options.openpose.suffix.lower() == ".json":
            yield OpenPoseSink(options.openpose, options.openpose_format)
        else:
            yield OpenPoseFolderSink(options.openpose, layout=options.openpose_format)
    if options.save is not None:
        yield PictureSink(options.save)


def _refuse_overwriting(sources: Sequence[object], folder: Path) -> None:
    for source in sources:
        # of a link both are kept: the link, and the file that it leads to
        if isinstance(source, Path) and folder.resolve() in (
            source.parent.resolve(),
            source.resolve().parent,
        ):
            raise InputError(
                f"--save {folder} is the folder of {source.name}, which would be overwritten; "
                f"choose another"
            )
