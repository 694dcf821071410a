"""Accuracy of person boxes, by pycocotools: AP, and AP and recall at IoU .5.

What is known of published boxes, too: figures of a paper are comparable on its own boxes alone.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MAX_BOXES = 100  # a photo, by score
IOUS = np.linspace(0.5, 0.95, 10)
COCO_VAL_PHOTOS = 5000
# of the person detections that HRNet and SimCC give out for val2017, as HRNet's README has it
PUBLISHED_AP = 0.564
PUBLISHED_FILE = "COCO_val2017_detections_AP_H_56_person.json"
NEAR = 0.002  # of two box APs that are those of the same boxes: one is rounded


def box_accuracy(
    truth: Mapping[str, Any],
    boxes: Mapping[int, NDArray[np.floating]],
    image_ids: Sequence[int],
) -> dict[str, float | int] | None:
    """AP, AP50, recall50 of (N, 4) xyxy boxes, or (N, 5) with scores, by photo.

    Truth is every annotated person, with keypoints or without; crowd regions are ignored. None
    without annotated people.
    """
    people = [{**p, "id": n, "area": p["bbox"][2] * p["bbox"][3]}
              for n, p in enumerate(truth["annotations"], start=1)]  # fmt: skip
    wanted = set(image_ids)
    counted = [p for p in people if p["image_id"] in wanted and not p["iscrowd"]]
    if not counted:
        return None
    results = _results(boxes, wanted, truth["categories"][0]["id"])
    evaluation = _evaluate(truth, people, results, wanted)
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    return {
        "AP": max(0.0, float(precision.mean())),
        "AP50": max(0.0, float(precision[0].mean())),
        "recall50": max(0.0, float(recall[0].mean())),
        "people": len(counted),
        "boxes": len(results),
    }


def note_on_boxes(name: str, photos: int, crowdpose: bool, ap: float | None) -> str:
    """What the AP of given boxes says beside what is published of the paper's; "" where they agree.

    `name` and `photos` are of the data set.
    """
    if crowdpose:
        return "no AP is published of CrowdPose's YOLOv3 boxes, so these are not checked"
    if "val2017" not in name and name != "coco-val":
        return f"an AP is published for COCO val2017's boxes, not for {name}: these are unchecked"
    if photos != COCO_VAL_PHOTOS:
        return (
            f"AP {PUBLISHED_AP:.3f} is published for the boxes of {COCO_VAL_PHOTOS} photos, and "
            f"{photos} are measured: these are unchecked"
        )
    if ap is not None and abs(ap - PUBLISHED_AP) <= NEAR:
        return ""
    return (
        f"they have AP {0.0 if ap is None else ap:.3f}, those of HRNet's and SimCC's figures "
        f"({PUBLISHED_FILE}) {PUBLISHED_AP:.3f}: the papers' figures are not comparable"
    )


def _results(
    boxes: Mapping[int, NDArray[np.floating]], wanted: set[int], category: int
) -> list[dict[str, Any]]:
    """The boxes of the wanted photos as COCO annotations."""
    results = [
        {
            "id": 0,
            "image_id": image_id,
            "category_id": category,
            "bbox": [row[0], row[1], row[2] - row[0], row[3] - row[1]],
            "area": (row[2] - row[0]) * (row[3] - row[1]),
            "iscrowd": 0,
            "score": row[4] if len(row) > 4 else 1.0,
        }
        for image_id, rows in boxes.items()
        if image_id in wanted
        for row in np.asarray(rows, dtype=np.float64).tolist()
    ]
    for n, box in enumerate(results, start=1):
        box["id"] = n
    return results


def _evaluate(
    truth: Mapping[str, Any],
    people: list[dict[str, Any]],
    results: list[dict[str, Any]],
    wanted: set[int],
) -> COCOeval:
    """pycocotools' evaluation at IoU .50:.05:.95, over boxes of all sizes."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth, detections = COCO(), COCO()
        ground_truth.dataset = {**truth, "annotations": people}
        detections.dataset = {**truth, "annotations": results}
        ground_truth.createIndex()
        detections.createIndex()
        evaluation = COCOeval(ground_truth, detections, "bbox")
        evaluation.params.imgIds = sorted(wanted)
        evaluation.params.iouThrs = IOUS
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.params.maxDets = [MAX_BOXES]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation
