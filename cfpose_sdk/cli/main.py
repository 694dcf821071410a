"""`cfpose predict` and `cfpose doctor`.

predict exits 0 when every source was read to its end, 1 when some were not (the rest is in the
files), 2 when nothing could be read or the use was wrong, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import cfpose_sdk
from cfpose_sdk.backends import Device
from cfpose_sdk.cli.outputs import OpenPoseFormat, OutputFiles
from cfpose_sdk.cli.predict import predict
from cfpose_sdk.diagnostics.doctor import describe, examine
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

    _add_predict(commands.add_parser("predict", help="find poses", formatter_class=shown))
    _add_doctor(commands.add_parser("doctor", help="say what works here", formatter_class=shown))
    return parser


def _add_predict(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_predict)
    command.epilog = _CODES
    command.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="photo, folder, glob, video, URL, camera index"
    )
    _add_models(command)
    _add_outputs(command)
    _add_video_options(command)


def _add_doctor(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_doctor)
    command.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_models(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", metavar="M", help="exported model; None is the bundled one")
    command.add_argument("--detector", metavar="D", help="person finder; None is the bundled one")
    command.add_argument("--device", choices=get_args(Device), default="auto", help="where to run")
    command.add_argument(
        "--allow-fallback", action="store_true", help="run on the CPU when the GPU does not load"
    )


def _add_outputs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--save", metavar="DIR", type=Path, help="write photos and videos with the poses"
    )
    command.add_argument("--coco", metavar="F.json", help="write COCO keypoint results")
    command.add_argument("--json", metavar="F.json", help="write all that is known of each image")
    command.add_argument("--csv", metavar="F.csv", help="write one row a person and joint")
    command.add_argument(
        "--openpose",
        metavar="DIR|F.json",
        type=Path,
        help="write OpenPose JSON, one file a frame into a folder, or one list into a .json file",
    )
    command.add_argument(
        "--openpose-format", choices=get_args(OpenPoseFormat), default="body25", help="its joints"
    )
    command.add_argument("--show", action="store_true", help="open a window; q or escape stops")


def _add_video_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--detect-every",
        metavar="N",
        type=int,
        default=1,
        help="look for people in each n-th frame",
    )
    command.add_argument(
        "--track",
        action="store_true",
        help="number the people of a video, or of photos of one size",
    )
    command.add_argument(
        "--smooth",
        action="store_true",
        help="One-Euro filter over each person of a video, which tracks too",
    )


def _predict(options: argparse.Namespace) -> int:
    outputs = OutputFiles(
        coco=options.coco,
        json=options.json,
        csv=options.csv,
        openpose=options.openpose,
        openpose_format=options.openpose_format,
        pictures=options.save,
    )
    streaming = StreamOptions(
        detect_every=options.detect_every, track=options.track, smooth=options.smooth
    )
    return predict(
        options.sources,
        model=options.model,
        detector=options.detector,
        device=options.device,
        allow_fallback=options.allow_fallback,
        outputs=outputs,
        streaming=streaming,
        show=options.show,
    )


def _doctor(options: argparse.Namespace) -> int:
    as_json: bool = options.json
    report = examine()
    print(json.dumps(report, indent=2) if as_json else describe(report))
    return 0 if report["ok"] else 1
