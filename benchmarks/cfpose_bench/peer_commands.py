"""`cfpose-bench boxes|simcc|peers`: prepare boxes, graphs and environments for a comparison."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import venv
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tqdm import tqdm

from cfpose_bench.data.dataset import KeypointDataset, find_dataset
from cfpose_bench.peers.simcc_graph import write_simcc_graph
from cfpose_sdk.backends.bundled import model_file
from cfpose_sdk.commands import number, watched
from cfpose_sdk.detectors import DetectorOptions, open_detector
from cfpose_sdk.detectors.base import Detector, as_detections
from cfpose_sdk.errors import BackendError, ImageError
from cfpose_sdk.files import write_file
from cfpose_sdk.formats import numbers
from cfpose_sdk.media.image import read_image

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

# rtmlib asks for OpenCV with its windows, twice; the headless one, alone, serves it too
PEERS = {
    "rtmlib": ("onnxruntime", "numpy", "opencv-python-headless", "tqdm", "rtmlib"),
    "ultralytics": ("ultralytics",),
    "mediapipe": ("mediapipe==0.10.21",),  # wheels of 1.0 and later carry no model
}
WITHOUT_DEPENDENCIES = ("rtmlib",)
# of the same version as here, or the comparison would be one of versions
SHARED = ("onnxruntime", "numpy", "opencv-python-headless")


def add_commands(commands: Commands) -> None:
    """Add `boxes`, `simcc` and `peers` to the sub-commands of cfpose-bench."""
    boxes = commands.add_parser("boxes", help="write a detector's person boxes, for --boxes")
    boxes.set_defaults(run=_boxes)
    boxes.add_argument("detector", type=Path, help="a file that PoseEstimator(detector=) opens")
    boxes.add_argument("--dataset", required=True, help="as in cfpose-bench")
    boxes.add_argument("--data-root", help="as in cfpose-bench")
    boxes.add_argument("--images", help="as in cfpose-bench")
    boxes.add_argument("--limit", type=int, help="only the first photos by id")
    boxes.add_argument(
        "--threshold", type=float, default=0.05, help="lowest score of a box (default: 0.05)"
    )
    boxes.add_argument(
        "--nms", type=float, default=0.45, help="IoU of a repeated box (default: 0.45)"
    )
    boxes.add_argument(
        "--size",
        type=number(1, 8192, whole=True),
        nargs=2,
        metavar=("W", "H"),
        help="of the input, where it is open",
    )
    boxes.add_argument(
        "--most", type=number(1, whole=True), help="boxes of a photo, by score (default: all)"
    )
    boxes.add_argument("-o", "--output", type=Path, required=True, help="COCO results file")
    simcc = commands.add_parser(
        "simcc", help="cut the SimCC network out of an artifact, for rtmlib"
    )
    simcc.set_defaults(run=_simcc)
    simcc.add_argument("model", type=Path, help="an exported artifact, or a bundled model")
    simcc.add_argument("-o", "--output", type=Path, required=True, help="the graph to write")
    peers = commands.add_parser("peers", help="make a separate environment for a peer")
    peers.set_defaults(run=_peers)
    peers.add_argument("what", choices=("install",))
    peers.add_argument("peer", choices=tuple(PEERS))
    peers.add_argument("folder", type=Path, help="folder of the new environment")


def _boxes(options: argparse.Namespace) -> int:
    limit, most, target = options.limit, options.most, options.output
    size = tuple(options.size) if options.size else None
    chosen = DetectorOptions(threshold=options.threshold, nms_iou=options.nms, size_wh=size)
    dataset = find_dataset(options.dataset, options.images, options.data_root)
    if limit is not None:
        dataset = dataset.limited(limit)
    with closing(open_detector(options.detector, chosen, device="cpu")) as detector:
        write_boxes(detector, dataset, target, most)
    return 0


def _simcc(options: argparse.Namespace) -> int:
    write_simcc_graph(source=model_file(options.model), target=options.output)
    return 0


def _peers(options: argparse.Namespace) -> int:
    print(install(peer=options.peer, folder=options.folder))
    return 0


def write_boxes(
    detector: Detector, dataset: KeypointDataset, target: Path, most: int | None = None
) -> None:
    """COCO detection results of a data set, at most so many a photo, by falling score.

    A photo that cannot be read is named on stderr.
    """
    found = []
    for image_id, path in tqdm(dataset.photos.items(), unit="photo", disable=not watched()):
        try:
            people = as_detections(detector(read_image(path)))
        except ImageError as error:
            print(f"cfpose-bench: no boxes: {error}", file=sys.stderr)
            continue
        for box, score in zip(people.boxes[:most], people.scores[:most], strict=True):
            x1, y1, x2, y2 = box
            sides = numbers(box[:2]) + numbers(box[2:] - box[:2])
            if x2 > x1 and y2 > y1:
                entry = {"image_id": image_id, "category_id": 1, "bbox": sides}
                found.append({**entry, "score": numbers(score[None])[0]})
    write_file(target, json.dumps(found) + "\n")


def install(peer: str, folder: Path) -> Path:
    """Make a peer's own environment; returns its interpreter, for --peer-python.

    Raises BackendError when pip fails.
    """
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    for package in PEERS[peer]:
        alone = ["--no-deps"] if package in WITHOUT_DEPENDENCIES else []
        wanted = _pinned(package) if package in SHARED else package
        command = [str(python), "-m", "pip", "install", "--quiet", *alone, wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BackendError(f"{package} cannot be installed: {done.stderr.strip()[-400:]}")
    return python


def _pinned(package: str) -> str:
    """The package at the version that runs here; any version where it is not installed."""
    try:
        return f"{package}=={importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package
