"""What annotation tools leave out or write in their own way, brought into COCO's; and what it is.

A null or an empty list stands for an absent value, 872.0 for 872. A person whom the evaluation
counts and who has no area (or 0, as COCO Annotator's joints have) gets that of the box: with an
area of 0 no pose would ever fit. How many got it stays with the record, under NOTES.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cfpose_sdk.errors import DatasetError

Record = dict[str, Any]
NOTES = "cfpose_notes"  # of a record: what was filled in → in how many people
AREA_OF_BOX = "people_with_area_of_box"
_LARGEST = 1e30  # squares of pixels stay finite
_WHOLE = ("id", "image_id", "category_id", "num_keypoints", "iscrowd", "width", "height")
_OPTIONAL = ("bbox", "area", "iscrowd", "num_keypoints", "width", "height")


def plain_record(record: Any) -> Any:
    """A copy of an image, person or category: no nulls where a value may lack, whole numbers."""
    if not isinstance(record, dict):
        return record  # the checks that follow name it
    plain = {k: v for k, v in record.items() if not (k in _OPTIONAL and v is None)}
    for key in _WHOLE:
        value = plain.get(key)
        if isinstance(value, float) and math.isfinite(value) and value == int(value):
            plain[key] = int(value)
    return plain


def check_exporter(label: str, data: Record) -> None:
    """Raise DatasetError for Label Studio's COCO files of photos with several people.

    Its exporter makes one person of all key points of a photo (its converter's `keypoints.py`).
    """
    info = data.get("info")
    if not isinstance(info, dict) or info.get("contributor") != "Label Studio":
        return
    entries = [entry for entry in data["annotations"] if isinstance(entry, dict)]
    with_joints = {str(entry.get("image_id")) for entry in entries if entry.get("keypoints")}
    boxes = Counter(str(e.get("image_id")) for e in entries if not e.get("keypoints"))
    if several := [photo for photo in with_joints if boxes[photo] > 1]:
        raise DatasetError(
            f"{label}: Label Studio's COCO export makes one person of all key points of a photo, "
            f"and {len(several)} photos here have several boxes; export JSON, and take that with: "
            f"cfpose-train data convert"
        )


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that can be reckoned with: neither NaN nor too large.

    JSON's whole numbers may have hundreds of digits, for which math.isfinite raises OverflowError.
    """
    return isinstance(value, int | float) and -_LARGEST <= value <= _LARGEST


def joint_count(names: Sequence[str], people: Sequence[Record]) -> int:
    """Joints of a person: as the category names them, else as the first person has them."""
    listed = (p["keypoints"] for p in people if _has_list(p, "keypoints") and p["keypoints"])
    first: Sequence[Any] = next(listed, ())
    return len(names) or len(first) // 3


def fill_in(person: Record, joints: int) -> bool:
    """Fill in what a person lacks, in place; whether the area of the box was taken.

    A person without labelled joints needs neither `keypoints` nor `bbox`. What is broken is left
    to the checks that follow.
    """
    if not person.get("keypoints") and person.get("num_keypoints", 0) == 0:
        person["keypoints"] = [0] * (3 * joints)
    flags = person["keypoints"][2::3] if _has_list(person, "keypoints") else ()
    counted = any(v in (1, 2) for v in flags) and not person.get("iscrowd")
    if not (counted or person.get("bbox")):
        person["bbox"] = [0, 0, 0, 0]
    if person.get("area", 0) == 0 and (area := _box_area(person.get("bbox"))) is not None:
        taken = counted and area > 0
        if taken or "area" not in person:
            person["area"] = area
        return taken
    return False


def notes(record: Mapping[str, Any]) -> dict[str, int]:
    """What was filled in → in how many people; nothing where the file was whole."""
    return dict(record.get(NOTES, {}))


def sentences(label: str, filled: Mapping[str, int]) -> list[str]:
    """The notes in words."""
    count = filled.get(AREA_OF_BOX, 0)
    if not count:
        return []
    return [f"{label}: {count} people have no area (or 0); that of their box is taken, so AP is "
            f"not comparable with one of annotated areas"]  # fmt: skip


def _has_list(person: Mapping[str, Any], key: str) -> bool:
    return isinstance(person.get(key), list)


def _box_area(box: Any) -> float | None:
    """Width times height; None where it is no box."""
    if not (isinstance(box, list) and len(box) == 4):
        return None
    if not all(map(is_number, box)):
        return None
    return float(max(0.0, box[2]) * max(0.0, box[3]))
