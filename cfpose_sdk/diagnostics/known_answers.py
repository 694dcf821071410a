"""The bundled models' known results on the bundled photo, and how far a runtime may differ.

`models/known_answers.json` holds the answers by the SHA-256 of the model file, so that another
model is never measured against them. After bundling new models, with the new ones in place:
`python -m cfpose_sdk.diagnostics.known_answers` writes it anew.

`BOUNDS` says how far a runtime may put joints from onnxruntime in float32 on the CPU, in crop
pixels, over the joints whose confidence reaches 0.3. tests/export/proof/test_backend_parity.py
holds every runtime that it can run to them, with the bundled model and the photos of examples/.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from cfpose_sdk.backends.bundled import BUNDLED_FINDER, bundled_models
from cfpose_sdk.boxes import iou_matrix
from cfpose_sdk.detectors.base import PersonFinder
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import MODELS, digest, write_file
from cfpose_sdk.formats import numbers
from cfpose_sdk.media.image import read_image
from cfpose_sdk.results import VISIBLE_FROM


@dataclass(frozen=True)
class Bound:
    """How far joints may differ, in pixels. `max_px`: any joint; infinite where a joint with two
    peaks may jump. `far`: the share of joints that may differ by more than a pixel.
    """

    max_px: float
    median_px: float
    far: float = 0.0


BOUNDS: Mapping[str, Bound] = MappingProxyType(
    {
        "OpenVINO f32": Bound(0.01, 0.001),
        "PyTorch": Bound(0.01, 0.001),
        # the graph does not round its crops to whole grey levels
        "frame input": Bound(math.inf, 0.15, far=0.05),
        "TensorRT fp32": Bound(0.05, 0.01),  # asked for; none of the three has run on hardware yet
        "onnxruntime CUDA": Bound(0.05, 0.01),
        "onnxruntime TensorRT": Bound(0.05, 0.01),
        "OpenVINO bf16": Bound(math.inf, 0.5, far=0.25),
        "OpenVINO int8": Bound(math.inf, 0.7, far=0.3),  # of a quantised graph
    }
)
PHOTO = MODELS / "known_person.png"
ANSWERS = MODELS / "known_answers.json"
_BOX = [25.0, 22.0, 73.0, 145.0]  # the person in the photo, drawn by hand
# Runtimes add in other orders: a hundredth of a pixel. Half precision may cost tenths.
MAX_PX = 1.0
FULL = Bound(MAX_PX, MAX_PX)
MIN_IOU = 0.9


@dataclass(frozen=True)
class Parity:
    """One model's answer against the known one; `passed` is None where none is known."""

    passed: bool | None
    message: str


def pose_parity(estimator: PoseEstimator, answers: Path = ANSWERS, bound: Bound = FULL) -> Parity:
    """Distances in pixels of the joints that are confident in the known answer."""
    known = _known(Path(estimator.info.model), answers)
    if known is None:
        return Parity(None, "no known answer for this model file")
    poses = estimator.predict(read_image(PHOTO), boxes=[known["box"]])
    confident = np.asarray(known["confidence"]) >= VISIBLE_FROM
    expected = np.asarray(known["xy"], dtype=np.float64)
    if poses.xy.shape[1:] != expected.shape or not confident.any():
        return Parity(False, f"answered with {poses.xy.shape[1]} joints, known {len(expected)}")
    distances = np.linalg.norm(poses.xy[0] - expected, axis=-1)[confident]
    most, half = float(distances.max()), float(np.median(distances))
    if math.isinf(bound.max_px):
        message = f"half of the joints within {half:.4f} px of the known answer, the worst at "
        return Parity(half <= bound.median_px, f"{message}{most:.4f} px")
    message = f"{most:.4f} px from the known answer, at most {bound.max_px} px"
    return Parity(most <= bound.max_px, message)


def finder_parity(finder: PersonFinder, answers: Path = ANSWERS) -> Parity:
    """Smallest overlap of the detected boxes with the known ones."""
    known = _known(finder.path, answers)
    if known is None:
        return Parity(None, "no known answer for this finder file")
    boxes = np.asarray(known["boxes"], dtype=np.float64).reshape(-1, 4)
    detections = finder(read_image(PHOTO))
    if len(detections) != len(boxes):
        return Parity(False, f"found {len(detections)} people, known {len(boxes)}")
    overlap = float(np.diag(iou_matrix(detections.boxes, boxes)).min(initial=1.0))
    message = f"boxes overlap the known ones by {overlap:.4f}, at least {MIN_IOU}"
    return Parity(overlap >= MIN_IOU, message)


def write_answers(path: Path = ANSWERS) -> Path:
    """Run the bundled models on the CPU and write their results."""
    image = read_image(PHOTO)
    with PersonFinder(device="cpu") as finder:
        detections = finder(image)
    answers: dict[str, dict[str, Any]] = {}
    for model in bundled_models().values():
        with PoseEstimator(model, device="cpu") as estimator:
            poses = estimator.predict(image, boxes=[_BOX])
        answers[digest(model)] = {
            "model": model.name,
            "box": _BOX,
            "xy": [numbers(point) for point in poses.xy[0]],
            "confidence": numbers(poses.confidence[0]),
        }
    answers[digest(BUNDLED_FINDER)] = {
        "model": BUNDLED_FINDER.name,
        "boxes": [numbers(box) for box in detections.boxes],
    }
    return write_file(path, json.dumps(answers, indent=1) + "\n")


def _known(model: Path, answers: Path) -> dict[str, Any] | None:
    if not answers.is_file() or not PHOTO.is_file():
        return None
    known: dict[str, Any] = json.loads(answers.read_text(encoding="utf-8"))
    answer: dict[str, Any] | None = known.get(digest(model))
    return answer


if __name__ == "__main__":
    print(write_answers())
