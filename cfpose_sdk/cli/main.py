"""The commands of `cfpose`, with the options and help of predict and doctor.

predict exits 0 when every source was read to its end, 1 when some were not (the rest is in the
files), 2 when nothing could be read or the use was wrong, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, get_args

import cfpose_sdk
from cfpose_sdk.backends.bundled import POSE_MODELS
from cfpose_sdk.backends.foreign import PRESETS
from cfpose_sdk.cli.bulk import add_bulk
from cfpose_sdk.cli.outputs import OpenPoseFormat, OutputFiles
from cfpose_sdk.cli.predict import predict
from cfpose_sdk.cli.serve import add_precision, add_serve, device
from cfpose_sdk.cli.tune import add_tune
from cfpose_sdk.detectors import DetectorOptions
from cfpose_sdk.diagnostics.doctor import describe, examine, model_facts
from cfpose_sdk.media.draw import Colouring, check_style
from cfpose_sdk.streaming.stream import StreamOptions

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_BATCH_FRAMES = 8
_CODES = (
    "exit codes: 0: every source was read to its end; 1: some were not, and the results of the "
    "others are written; 2: wrong use, or nothing could be read, and no file is left; 130: "
    "interrupted; the files of a camera or URL are finished, and no other file is left"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Raises CfposeError on bad input."""
    options = _parser().parse_args(argv)
    code: int = options.run(options)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cfpose", description="Human pose estimation in photos and videos."
    )
    parser.add_argument("--version", action="version", version=f"cfpose {cfpose_sdk.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_predict(commands)
    add_serve(commands)
    add_bulk(commands)
    add_tune(commands)
    _add_doctor(commands)
    return parser


def _add_predict(commands: Commands) -> None:
    command = commands.add_parser(
        "predict",
        help="estimate the poses of people in photos and videos",
        description="Estimate the poses of all people in photos, videos and camera images.",
        epilog=_CODES,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=_predict)
    command.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="photo, folder, glob, video, URL, or number of a camera",
    )
    _add_models(command)
    _add_outputs(command)
    _add_video_options(command)


def _add_doctor(commands: Commands) -> None:
    command = commands.add_parser(
        "doctor",
        help="check what works on this machine",
        description="Run the bundled models with each installed runtime and report what works.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=_doctor)
    command.add_argument("--json", action="store_true", help="print the report as JSON")
    command.add_argument("--model", metavar="M", help="describe this model, too")


def _add_models(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        metavar="M",
        help=f"exported pose model, a bundled one ({', '.join(POSE_MODELS)}), or a foreign network "
        f"with its preset ({', '.join(PRESETS)}) as movenet:F.onnx; None: the bundled default",
    )
    command.add_argument(
        "--detector", metavar="D", help="person detector; None: the bundled finder"
    )
    command.add_argument(
        "--threshold",
        metavar="S",
        type=float,
        help="leave out people whom the detector scores below this, 0 to 1; None: the detector's",
    )
    command.add_argument(
        "--nms",
        metavar="IOU",
        type=float,
        help="of two boxes that overlap more the lower-scored is left out; None: the detector's",
    )
    command.add_argument(
        "--max-people", metavar="N", type=int, help="keep the N best-scored people of an image"
    )
    command.add_argument(
        "--device",
        type=device,
        default="auto",
        help="device that runs the models: auto, cpu, cuda or cuda:N, tensorrt or tensorrt:N, "
        "openvino (default: %(default)s)",
    )
    add_precision(command)
    command.add_argument(
        "--allow-fallback",
        action="store_true",
        help="run on the CPU, with a warning, when the GPU does not work",
    )


def _add_outputs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--save",
        metavar="DIR",
        type=Path,
        help="draw the poses and write the photos and videos into this folder",
    )
    command.add_argument("--coco", metavar="F.json", help="write COCO keypoint results")
    command.add_argument(
        "--json", metavar="F.json", help="write boxes, joints and times of each image"
    )
    command.add_argument(
        "--csv", metavar="F.csv", help="write one row for each joint of each person"
    )
    command.add_argument(
        "--openpose",
        metavar="DIR|F.json",
        type=Path,
        help="write OpenPose JSON: one file for each frame into a folder, or all into a .json file",
    )
    command.add_argument(
        "--openpose-format",
        choices=get_args(OpenPoseFormat),
        default="body25",
        help="joints of the OpenPose files",
    )
    command.add_argument(
        "--only-visible",
        action="store_true",
        help="write no coordinates of joints whose confidence is below 0.3: null in JSON, no row "
        "in CSV, zeros in COCO and OpenPose files",
    )
    _add_drawing(command)
    command.add_argument(
        "--show",
        action="store_true",
        help="show the poses in a window; q or Escape stops. Needs a display, and opencv-python in "
        "the place of opencv-python-headless",
    )


def _add_drawing(command: argparse.ArgumentParser) -> None:
    command.add_argument("--boxes", action="store_true", help="draw the boxes of the people")
    command.add_argument("--labels", action="store_true", help="draw the scores of the boxes")
    command.add_argument(
        "--line-width", metavar="PX", type=float, help="width of drawn limbs; None: by the person"
    )
    command.add_argument(
        "--colours",
        choices=get_args(Colouring),
        default="auto",
        help="paint left and right apart, or each person; auto: people where they have ids",
    )


def _add_video_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--detect-every",
        metavar="N",
        type=int,
        default=1,
        help="run the detector on every N-th frame only",
    )
    command.add_argument(
        "--track",
        action="store_true",
        help="give each person of a video, or of photos of one size, an id",
    )
    command.add_argument(
        "--smooth",
        action="store_true",
        help="smooth the joints of each person in a video (One-Euro filter); includes --track",
    )
    command.add_argument(
        "--reconnect",
        metavar="SECONDS",
        type=float,
        default=0.0,
        help="open a camera or URL that is lost again, for up to so many seconds; ids end there",
    )
    command.add_argument(
        "--latency",
        action="store_true",
        help="give the poses of each frame at once; without it up to 8 frames of photos and video "
        "files wait for each other, for more frames a second. Cameras, URLs and --show never wait",
    )


def _predict(options: argparse.Namespace) -> int:
    outputs = OutputFiles(
        coco=options.coco,
        json=options.json,
        csv=options.csv,
        openpose=options.openpose,
        openpose_format=options.openpose_format,
        pictures=options.save,
        style={
            "boxes": options.boxes,
            "labels": options.labels,
            "line_width": options.line_width,
            "colours": options.colours,
        },
        only_visible=options.only_visible,
    )
    check_style(options.line_width, options.colours)
    chosen = {"threshold": options.threshold, "nms_iou": options.nms}
    given = any(value is not None for value in chosen.values())
    streaming = StreamOptions(
        detect_every=options.detect_every,
        track=options.track,
        smooth=options.smooth,
        reconnect_s=options.reconnect,
        batch_frames=1 if options.latency or options.show else _BATCH_FRAMES,
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
        finding=DetectorOptions(**chosen) if given else None,
        max_people=options.max_people,
        precision=options.precision,
    )


def _doctor(options: argparse.Namespace) -> int:
    as_json: bool = options.json
    model: str | None = options.model
    report = examine()
    if model is not None:
        report["model"] = model_facts(model)
    print(json.dumps(report, indent=2) if as_json else describe(report))
    return 0 if report["ok"] else 1
