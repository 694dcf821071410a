"""What does a score of the bundled finder mean, and would a calibrated one rank poses as well?

    python studies/finder_scores.py --data-root DATA --json studies/results/finder-scores-dev.json

A minute on two cores. Photos: the development split (COCO train photos with id % 10 == 0). A box
is right when it is the best left for an annotated person at IoU 0.5; those in crowds are passed by.
The calibrated score is a logistic function of the heat's logit (Platt, 1999), fitted on these very
boxes, so it flatters itself. Each score multiplies the joints' mean confidence, as a pose's score
is defined; each keeps the boxes that the shipped threshold keeps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_bench.accuracy.coco import evaluate
from cfpose_bench.accuracy.fits import fit_confidence
from cfpose_bench.data.annotations import read_annotations
from cfpose_bench.measurement import environment
from cfpose_sdk.arrays import Float64
from cfpose_sdk.boxes import iou_matrix
from cfpose_sdk.detectors.base import Detections, PersonFinder
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import write_file
from cfpose_sdk.keypoints import calibrate, raw_score
from cfpose_sdk.media.image import read_image

LOWEST = 0.45  # of the boxes that the fit sees; the finder's scores are fourth roots of its heat
MATCH_IOU, CROWD_IOU = 0.5, 0.3
RIGHT = (0.1, 0.25, 0.5, 0.75, 0.9)


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    folder = arguments.data_root / "coco"
    truth = read_annotations(folder / "person_keypoints_train.json")
    photos = {i["id"]: folder / "images" / "train" / i["file_name"] for i in truth["images"]}
    photos = {i: p for i, p in photos.items() if i % 10 == 0 and p.is_file()}
    with PersonFinder(device="cpu", threshold=LOWEST) as finder:
        found = {i: finder(read_image(path)) for i, path in photos.items()}
        shipped = finder.spec.threshold
    scores, right = [], []
    for image_id, detections in found.items():
        verdict = judged(truth, image_id, detections)
        scores += detections.scores[verdict >= 0].tolist()
        right += verdict[verdict >= 0].tolist()
    calibration = fit_confidence(np.array(scores) ** 4, np.array(right) == 1)

    def calibrated(score: Float64) -> Float64:
        return calibrate(score**4, calibration)

    kept = {i: _cut(detections, shipped) for i, detections in found.items()}
    ways = {
        "shipped": lambda score: score,
        "heat": lambda score: score**4,
        "calibrated": calibrated,
    }
    report = {
        "environment": environment(),
        "boxes": len(scores),
        "right": int(sum(right)),
        "calibration": [round(value, 3) for value in calibration],
        "score_that_is_right_so_often": {
            str(share): round(float(raw_score(np.array(share), calibration)) ** 0.25, 3)
            for share in RIGHT
        },
        "precision_at_the_shipped_threshold": round(
            float(np.array(right)[np.array(scores) >= shipped].mean()), 3
        ),
        "ap": {
            name: {
                way: round(ap(truth, photos, kept, change, name), 4) for way, change in ways.items()
            }
            for name in ("cfpose-s", "cfpose-m")
        },
    }
    write_file(arguments.json, (json.dumps(report, indent=2) + "\n").encode())
    print(json.dumps(report, indent=2))


def judged(truth: Mapping[str, Any], image_id: int, detections: Detections) -> Float64:
    """1 right, 0 wrong, -1 in a crowd: (N,), the surest box first in line for a person."""
    own = [p for p in truth["annotations"] if p["image_id"] == image_id]
    people, crowds = (
        np.array([p["bbox"] for p in own if p["iscrowd"] == kind], np.float64).reshape(-1, 4)
        for kind in (0, 1)
    )
    for boxes in (people, crowds):
        boxes[:, 2:] += boxes[:, :2]
    mine = detections.boxes.astype(np.float64)
    overlap, crowd = iou_matrix(mine, people), iou_matrix(mine, crowds)
    verdict = np.zeros(len(mine))
    for index in np.argsort(-detections.scores, kind="stable"):
        best = int(overlap[index].argmax()) if len(people) else -1
        if best >= 0 and overlap[index, best] >= MATCH_IOU:
            verdict[index] = 1
            overlap[:, best] = 0
        elif len(crowds) and crowd[index].max() > CROWD_IOU:
            verdict[index] = -1
    return verdict


def ap(
    truth: Mapping[str, Any],
    photos: Mapping[int, Path],
    found: Mapping[int, Detections],
    change: Callable[[Float64], Float64],
    model: str,
) -> float:
    """AP of a model's poses in the boxes, whose scores are changed."""
    results = []
    with PoseEstimator(model, device="cpu") as pose:
        for image_id, path in photos.items():
            boxes, score = found[image_id].boxes, found[image_id].scores.astype(np.float64)
            scored = Detections(boxes, change(score).astype(np.float32))
            results += pose.predict(read_image(path), boxes=scored).to_coco(image_id)
    return evaluate(truth, results, image_ids=list(photos)).AP


def _cut(detections: Detections, threshold: float) -> Detections:
    kept = detections.scores >= threshold
    return Detections(detections.boxes[kept], detections.scores[kept])


if __name__ == "__main__":
    main()
