"""CrowdPose's protocol (Li et al., CVPR 2019): AP, and AP of easy, medium and hard photos.

It is COCO's evaluation with 14 joints, CrowdPose's OKS constants, 0.53 · w · h of the annotated box
for the area (as `read_annotations` fills it in), no size classes, and photos sorted by crowd index.

OPEC-Net (Qiu et al., ECCV 2020) brought a copy of that evaluator which compares the first 12 joints
alone, without top of head and neck. Its figures are higher, and some papers' look like them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cfpose_bench.accuracy.coco import Accuracy, evaluate_read
from cfpose_bench.data.annotations import CROWD_INDEX, is_crowdpose, read_annotations
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.skeleton import CROWDPOSE_14, Skeleton

LEVELS = {  # crowd index from (included) and to (excluded)
    "easy": (-math.inf, 0.2),
    "medium": (0.2, 0.8),
    "hard": (0.8, math.inf),
}
Evaluator = Literal["own", "opec-12"]  # own: that of the data set's authors
OPEC_12: Literal["opec-12"] = "opec-12"
OPEC_JOINTS = 12


def evaluate_crowdpose(
    annotations: str | Path | Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    image_ids: Sequence[int] | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    evaluator: Evaluator = "own",
) -> Accuracy:
    """`accuracy.evaluate` under CrowdPose's protocol: with AP_easy, AP_medium and AP_hard.

    The figures by size (APM, APL, ARM, ARL) are nan. `opec-12`: on the first 12 joints, as OPEC-Net
    evaluates; people are counted by all 14, and one of whom only head or neck is labelled is missed
    unless a pose lies in twice the box. Raises DatasetError when the annotations are not
    CrowdPose's, or the results or the skeleton do not fit them.
    """
    truth = read_annotations(annotations)
    if not is_crowdpose(truth):
        raise DatasetError(
            f"the annotations are not CrowdPose's: a photo lacks {CROWD_INDEX!r}; evaluate them as "
            f"a COCO file"
        )
    selected = {image["id"] for image in truth["images"]} if image_ids is None else set(image_ids)
    levels, skeleton = photos_by_level(truth), CROWDPOSE_14
    if evaluator == OPEC_12:
        truth, results, skeleton = _first_joints(truth, results)
    whole = evaluate_read(
        truth, results, skeleton, sorted(selected), bootstrap=bootstrap, seed=seed
    )
    by_level = {
        level: evaluate_read(truth, results, skeleton, sorted(photos & selected)).AP
        for level, photos in levels.items()
    }
    return dataclasses.replace(
        whole,
        AP_easy=by_level["easy"],
        AP_medium=by_level["medium"],
        AP_hard=by_level["hard"],
        APM=math.nan,
        APL=math.nan,
        ARM=math.nan,
        ARL=math.nan,
    )


def photos_by_level(truth: Mapping[str, Any]) -> dict[str, set[int]]:
    """Ids of the easy, medium and hard photos of CrowdPose annotations."""
    return {
        level: {image["id"] for image in truth["images"] if low <= image[CROWD_INDEX] < high}
        for level, (low, high) in LEVELS.items()
    }


def _first_joints(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]], Skeleton]:
    """Annotations, results and skeleton without the last two joints; who counts stays the same."""
    full, count = CROWDPOSE_14, OPEC_JOINTS
    skeleton = Skeleton(
        full.keypoints[:count],
        tuple(pair for pair in full.limbs if max(pair) < count),
        tuple(pair for pair in full.flip_pairs if max(pair) < count),
        full.oks_sigmas[:count],
    )
    category = {**truth["categories"][0], "keypoints": list(skeleton.keypoints)}
    people, poses = (
        [
            {**each, "keypoints": list(each["keypoints"])[: 3 * count]}
            if len(each.get("keypoints", ())) == 3 * len(full)
            else dict(each)  # the evaluation refuses it
            for each in listed
        ]
        for listed in (truth["annotations"], results)
    )
    return {**truth, "categories": [category], "annotations": people}, poses, skeleton
