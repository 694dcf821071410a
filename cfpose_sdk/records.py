"""Plain arrays in, plain Python records out: JSON, COCO results, table rows."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

ROW_FIELDS = (
    "image", "person", "keypoint", "x", "y", "confidence", "visible",
    "x1", "y1", "x2", "y2", "box_score",
)  # fmt: skip


def coco_image_id(name: str) -> int | str:
    """COCO's integer where the file name's stem is one (000000000139.jpg), else the name."""
    stem = PurePath(name).stem
    return int(stem) if stem.isascii() and stem.isdigit() else PurePath(name).name


def coco_results(
    image_id: int | str, xy: Floats, confidence: Floats, boxes: Floats, box_scores: Floats
) -> list[dict[str, Any]]:
    """COCO keypoint results of N people; see `Poses.to_coco`."""
    keypoints = np.concatenate([xy, confidence[..., None]], axis=-1)
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    scores = box_scores * confidence.mean(axis=1)
    return [
        {
            "image_id": image_id,
            "category_id": 1,
            "keypoints": numbers(keypoints[n].ravel()),
            "score": numbers(scores[n : n + 1])[0],
            "bbox": numbers(xywh[n]),
        }
        for n in range(len(xy))
    ]


def table_rows(
    image: str | None,
    names: tuple[str, ...],
    people: NDArray[np.integer],
    xy: Floats,
    confidence: Floats,
    visible: NDArray[np.bool_],
    boxes: Floats,
    box_scores: Floats,
) -> list[dict[str, Any]]:
    """One flat record a person and joint, with the keys `ROW_FIELDS`; `people` (N,) numbers."""
    return [
        dict(
            zip(
                ROW_FIELDS,
                (
                    image,
                    int(people[n]),
                    name,
                    *numbers(xy[n, k]),
                    *numbers(confidence[n, k : k + 1]),
                    bool(visible[n, k]),
                    *numbers(boxes[n]),
                    *numbers(box_scores[n : n + 1]),
                ),
                strict=True,
            )
        )
        for n in range(len(xy))
        for k, name in enumerate(names)
    ]


def numbers(values: NDArray[Any]) -> list[float]:
    """Float32 as short decimals: 0.1 and not 0.10000000149."""
    return [float(str(value)) for value in np.asarray(values, dtype=np.float32)]
