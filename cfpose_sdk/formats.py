"""Poses in other formats: JSON records, COCO results, table rows, pandas, supervision."""

from __future__ import annotations

import importlib
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import Floats
from cfpose_sdk.errors import MissingDependencyError

ROW_FIELDS = (
    "image", "frame", "person", "keypoint", "x", "y", "confidence", "visible",
    "x1", "y1", "x2", "y2", "box_score",
)  # fmt: skip


def coco_image_id(name: str) -> int | str:
    """COCO's integer where the file name's stem is one (000000000139.jpg), else the name.

    A name with folders, which tells it from another of the same name, stays whole.
    """
    if len(PurePath(name).parts) > 1:
        return name
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
    frame: int | None,
    names: tuple[str, ...],
    people: NDArray[np.integer],
    xy: Floats,
    confidence: Floats,
    visible: NDArray[np.bool_],
    boxes: Floats,
    box_scores: Floats,
) -> list[dict[str, Any]]:
    """One flat record a person and joint, with the keys `ROW_FIELDS`; `people` (N,) numbers.

    `frame` is None outside videos.
    """
    return [
        dict(
            zip(
                ROW_FIELDS,
                (
                    image,
                    frame,
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


def person_records(
    xy: Floats,
    confidence: Floats,
    visible: NDArray[np.bool_],
    boxes: Floats,
    box_scores: Floats,
    *,
    ids: NDArray[np.integer] | None,
    covariance: Floats | None,
    xy_raw: Floats | None,
) -> list[dict[str, Any]]:
    """One nested record a person; see `Poses.to_dict`. What is None has no key."""
    people = []
    for n in range(len(xy)):
        person: dict[str, Any] = {
            "box": numbers(boxes[n]),
            "box_score": numbers(box_scores[n : n + 1])[0],
            "xy": [numbers(point) for point in xy[n]],
            "confidence": numbers(confidence[n]),
            "visible": [bool(seen) for seen in visible[n]],
        }
        if ids is not None:
            person["id"] = int(ids[n])
        if covariance is not None:
            person["covariance"] = [[numbers(row) for row in joint] for joint in covariance[n]]
        if xy_raw is not None:
            person["xy_raw"] = [numbers(point) for point in xy_raw[n]]
        people.append(person)
    return people


def numbers(values: NDArray[Any]) -> list[float]:
    """Float32 as short decimals: 0.1 and not 0.10000000149."""
    return [float(str(value)) for value in np.asarray(values, dtype=np.float32)]


def dataframe(rows: list[dict[str, Any]]) -> Any:
    """A pandas DataFrame of `table_rows`; without rows it has the columns all the same."""
    return _import("pandas").DataFrame(rows, columns=list(ROW_FIELDS))


def key_points(
    xy: Floats,
    confidence: Floats,
    visible: NDArray[np.bool_],
    box_scores: Floats,
    data: dict[str, Any],
) -> Any:
    """supervision.KeyPoints of N people of class 0."""
    return _import("supervision").KeyPoints(
        xy=xy,
        keypoint_confidence=confidence,
        detection_confidence=box_scores,
        visible=visible,
        class_id=np.zeros(len(xy), dtype=int),
        data=data,
    )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"this conversion needs {name}, which cannot be imported ({error}); "
            f"run: pip install {name}"
        ) from error
