"""An adopted graph on annotated photos, in the annotated boxes: its AP, and its calibration."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from cfpose_export.adopt.adoption import Plan
from cfpose_export.adopt.surgery import fuse
from cfpose_sdk.detectors.base import Detections
from cfpose_sdk.errors import DatasetError, ImageError, require
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import sha256
from cfpose_sdk.keypoints import calibrate
from cfpose_sdk.media.image import Image
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import Skeleton
from cfpose_sdk.spec import Adoption

_GOOD_OKS = 0.5
_DIGITS = 4


class Joints(NamedTuple):
    """M labelled joints of all people."""

    score: NDArray[np.float64]  # (M,) raw
    good: NDArray[np.bool_]  # (M,) within the OKS-good distance
    error: NDArray[np.float64]  # (M, 2) pixels of the photo
    covariance: NDArray[np.float64]  # (M, 2, 2) pixels²


def measured_ap(model: onnx.ModelProto, annotations: Path, images: Path | None) -> dict[str, Any]:
    """AP, AP50 and AP75 of a crops-in graph. Raises DatasetError for photos that do not fit."""
    require("pycocotools", extra="bench", why="adopt --check")
    from cfpose_bench.accuracy.coco import evaluate

    dataset, photos, skeleton = _predicted(model, annotations, images)
    results = [row for number, poses in photos.items() for row in poses.to_coco(number)]
    found = evaluate(dataset.annotations, results, skeleton=skeleton, image_ids=dataset.image_ids)
    figures = {name: round(getattr(found, name), _DIGITS) for name in ("AP", "AP50", "AP75")}
    return {"photos": found.images, "people": found.instances, **figures}


def calibrated(plan: Plan, annotations: Path, images: Path | None) -> tuple[Plan, dict[str, Any]]:
    """The plan with confidence and covariance fitted on annotated photos, and the fit's figures.

    Raises DatasetError for photos that do not fit, or hold no labelled joint.
    """
    require("pycocotools", extra="bench", why="adopt --calibrate")
    from cfpose_bench.accuracy.fits import fit_confidence, fit_spread

    dataset, photos, skeleton = _predicted(fuse(plan), annotations, images)
    joints = _labelled(dataset, photos, skeleton)
    calibration = fit_confidence(joints.score, joints.good)
    confidence = calibrate(joints.score, calibration)
    scale, power = fit_spread(joints.error, joints.covariance, confidence)
    source = {"calibrated_on": annotations.name, "calibrated_sha256": _digest(annotations)}
    spec = dataclasses.replace(
        plan.spec,
        calibration=(round(calibration[0], _DIGITS), round(calibration[1], _DIGITS)),
        covariance_scale=float(f"{scale:.4g}"),
        covariance_odds_power=power,
        adopted=_with_facts(plan.spec.adopted, source),
    )
    figures = {
        "joints": len(joints.score),
        "good": round(float(joints.good.mean()), _DIGITS),
        "mean_confidence": round(float(confidence.mean()), _DIGITS),
        "calibration": list(spec.calibration),
        "covariance_scale": spec.covariance_scale,
        "covariance_odds_power": power,
    }
    return dataclasses.replace(plan, spec=spec), figures


def _predicted(
    model: onnx.ModelProto, annotations: Path, images: Path | None
) -> tuple[Any, dict[int, Poses], Skeleton]:
    """The data set, and the poses of each photo in its annotated boxes."""
    from cfpose_bench.accuracy.coco import check_skeleton
    from cfpose_bench.data.dataset import open_dataset

    dataset = open_dataset(annotations, images=images)
    boxes = dataset.ground_truth_boxes()
    photos: dict[int, Poses] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(model, path)
        with PoseEstimator(path, detector=_nobody, device="cpu") as estimator:
            skeleton = estimator.spec.skeleton
            check_skeleton(dataset.annotations, skeleton)
            for number, photo in dataset.photos.items():
                try:
                    poses = estimator.predict(photo, boxes=boxes[number])
                except ImageError:
                    continue  # counts as a photo without poses, as in the bench
                photos[number] = dataclasses.replace(poses, image=None)
    return dataset, photos, skeleton


def _labelled(dataset: Any, photos: dict[int, Poses], skeleton: Skeleton) -> Joints:
    """The labelled joints of the people whose boxes were given, in their order."""
    from cfpose_bench.data.annotations import is_counted

    rows: list[tuple[float, bool, NDArray[np.float64], NDArray[np.float32]]] = []
    next_person = dict.fromkeys(photos, 0)
    reach_of = 2 * np.asarray(skeleton.oks_sigmas) * math.sqrt(-2 * math.log(_GOOD_OKS))
    for person in dataset.annotations["annotations"]:
        number = person["image_id"]
        if number not in photos or not is_counted(person):
            continue
        poses, index = photos[number], next_person[number]
        next_person[number] += 1
        truth = np.asarray(person["keypoints"], np.float64).reshape(-1, 3)
        error = poses.xy[index] - truth[:, :2]
        near = np.linalg.norm(error, axis=1) <= reach_of * math.sqrt(max(person["area"], 1e-6))
        if poses.covariance is None:
            raise DatasetError("the graph gives no covariance to calibrate")
        for joint in np.flatnonzero(truth[:, 2] > 0):
            score = float(poses.confidence[index, joint])
            spread = poses.covariance[index, joint]
            rows.append((score, bool(near[joint]), error[joint], spread))
    if not rows:
        empty = np.zeros((0, 2))
        return Joints(np.zeros(0), np.zeros(0, bool), empty, np.zeros((0, 2, 2)))
    scores, goods, errors, spreads = (list(column) for column in zip(*rows, strict=True))
    return Joints(
        np.array(scores), np.array(goods), np.array(errors), np.array(spreads, dtype=np.float64)
    )


def _with_facts(adopted: Adoption | None, facts: dict[str, str]) -> Adoption | None:
    if adopted is None:
        return None
    return dataclasses.replace(adopted, calibrated=True, settings={**adopted.settings, **facts})


def _digest(path: Path) -> str:
    """SHA-256 of the annotations, whatever their layout as text."""
    return sha256(json.dumps(json.loads(path.read_bytes()), sort_keys=True).encode())


def _nobody(_: Image) -> Detections:
    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
