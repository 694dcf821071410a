"""CrowdPose's protocol (Li et al., CVPR 2019): AP, and AP of easy, medium and hard photos.

It is COCO's evaluation with 14 joints, CrowdPose's OKS constants, 0.53 · w · h of the annotated box
for the area (as `read_annotations` fills it in), no size classes, and photos sorted by crowd index.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cfpose_bench.accuracy.coco import Accuracy, evaluate
from cfpose_bench.data.annotations import CROWD_INDEX, is_crowdpose, read_annotations
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.skeleton import CROWDPOSE_14

LEVELS = {  # crowd index from (included) and to (excluded)
    "easy": (-math.inf, 0.2),
    "medium": (0.2, 0.8),
    "hard": (0.8, math.inf),
}


def evaluate_crowdpose(
    annotations: str | Path | Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    image_ids: Sequence[int] | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> Accuracy:
    """`accuracy.evaluate` under CrowdPose's protocol: with AP_easy, AP_medium and AP_hard.

    The figures by size (APM, APL, ARM, ARL) are nan. Raises DatasetError when the annotations are
    not CrowdPose's, or the results or the skeleton do not fit them.
    """
    truth = read_annotations(annotations)
    if not is_crowdpose(truth):
        raise DatasetError(
            f"the annotations are not CrowdPose's: a photo lacks {CROWD_INDEX!r}; evaluate them as "
            f"a COCO file"
        )
    selected = {image["id"] for image in truth["images"]} if image_ids is None else set(image_ids)
    whole = evaluate(
        truth,
        results,
        skeleton=CROWDPOSE_14,
        image_ids=sorted(selected),
        bootstrap=bootstrap,
        seed=seed,
    )
    by_level = {
        level: evaluate(
            truth, results, skeleton=CROWDPOSE_14, image_ids=sorted(photos & selected)
        ).AP
        for level, photos in photos_by_level(truth).items()
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
