"""Person boxes of a COCO detection-results file, and what of it is not used."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_bench.data.annotations import PERSON, read_json
from cfpose_bench.data.gaps import is_number
from cfpose_sdk.errors import DatasetError

COCO_PERSON = 1


@dataclass(frozen=True)
class BoxFile:
    """Boxes by photo, (N, 5): xyxy and score; and how many boxes of the file are not used."""

    boxes: dict[int, NDArray[np.float64]]
    other_category: int = 0


def read_boxes(path: str | Path, category: Any = COCO_PERSON) -> dict[int, NDArray[np.float64]]:
    """(N, 5) boxes of each photo, as `read_box_file` reads them."""
    return read_box_file(path, category).boxes


def read_box_file(path: str | Path, category: Any = COCO_PERSON) -> BoxFile:
    """The people of a list of {"image_id", "bbox": [x, y, w, h], "score"}.

    `category` is the id of people in the data set; entries of another `category_id` are left out.
    Where no entry has it, COCO's 1 is taken; the name "person" always is. Raises DatasetError on
    any other content, where a file has boxes and none of a person, and where ids begin at 0, as
    YOLO's do: its 1 is a bicycle.
    """
    data = read_json(Path(path))
    if not isinstance(data, list):
        raise DatasetError(f"{path}: expected a list of COCO detection results")
    found = [_entry(path, index, entry) for index, entry in enumerate(data)]
    ids = Counter(number for number, _, _ in found if number is not None)
    chosen = _person_id(path, ids, category)
    people = [(image, row) for number, image, row in found if number in (None, PERSON, chosen)]
    rows: dict[int, list[list[float]]] = {}
    for image_id, row in people:
        rows.setdefault(image_id, []).append(row)
    boxes = {image_id: np.array(boxes, dtype=np.float64) for image_id, boxes in rows.items()}
    return BoxFile(boxes, len(found) - len(people))


def check_photos(path: str | Path, boxes: Mapping[int, object], known: set[int]) -> None:
    """Raise DatasetError unless some box is of a photo of the data set."""
    if known & boxes.keys():
        return
    if not boxes:
        raise DatasetError(f"{path}: holds no box of a person; there is nothing to measure")
    raise DatasetError(
        f"{path}: none of its boxes is of a photo of the data set: its image_ids begin with "
        f"{sorted(boxes)[:3]}, the data set's with {sorted(known)[:3]}; take the boxes of these "
        f"photos"
    )


def _entry(path: str | Path, index: int, entry: Any) -> tuple[Any, int, list[float]]:
    """category_id (None where absent), photo, and the row of an entry."""
    try:
        number = entry.get("category_id")
        x, y, w, h = (float(value) for value in entry["bbox"])
        score, image_id = float(entry["score"]), int(entry["image_id"])
        if isinstance(number, str | int | float | None):
            number = number.lower() if isinstance(number, str) else number
        else:
            raise TypeError(f"category_id {number!r}")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(
            f"{path}: entry {index} needs image_id, bbox [x, y, w, h] and score ({error!r})"
        ) from error
    if not (w > 0 and h > 0 and all(map(is_number, (x, y, w, h)))):
        raise DatasetError(f"{path}: entry {index} has the box {entry['bbox']}")
    if not math.isfinite(score):
        raise DatasetError(f"{path}: entry {index} has the score {score}, expected a finite number")
    return number, image_id, [x, y, x + w, y + h, score]


def _person_id(path: str | Path, ids: Mapping[Any, int], category: Any) -> Any:
    """The category_id that means a person in this file."""
    chosen = next((known for known in (category, PERSON) if known in ids), COCO_PERSON)
    zero_based = 0 in ids and chosen != 0
    if ids and (chosen not in ids or zero_based):
        there = ", ".join(f"{number!r} ({count} boxes)" for number, count in list(ids.items())[:5])
        why = "ids that begin at 0 are another numbering; " if zero_based else ""
        raise DatasetError(
            f"{path}: its category_ids are {there}; a person is {category!r} in the data set: "
            f"{why}write people's boxes with category_id {category!r}"
        )
    return chosen
