"""Read and check keypoint annotations in COCO's format, or in CrowdPose's variant of it.

CrowdPose (Li et al., CVPR 2019) gives each photo a `crowdIndex` and its people no `area`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cfpose_bench.data.gaps import (
    AREA_OF_BOX,
    NOTES,
    check_exporter,
    fill_in,
    is_number,
    joint_count,
    plain_record,
)
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.skeleton import CROWDPOSE_14

Record = dict[str, Any]
PERSON = "person"  # name of the category of people
CROWD_INDEX = "crowdIndex"  # of a CrowdPose photo: how crowded it is, in [0, 1]
CROWDPOSE_AREA = 0.53  # of the box; the official CrowdPose evaluator's stand-in for the area
CROWDPOSE_NAMES = (*CROWDPOSE_14.keypoints[:12], "head", "neck")  # as its files have them

_LARGEST_SIDE = 1 << 31  # pixels


def is_counted(person: Mapping[str, Any]) -> bool:
    """Whether the evaluation counts this annotation: labelled keypoints, and no crowd region."""
    return bool(person["num_keypoints"] > 0 and not person["iscrowd"])


def read_annotations(source: str | Path | Mapping[str, Any]) -> Record:
    """A checked copy of COCO keypoint annotations, from a JSON file or a mapping.

    `iscrowd`, `num_keypoints` and areas are filled in where absent, and so are the joints and boxes
    of people without labelled joints (`data.gaps`). Where every photo has a `crowdIndex`, the areas
    become CrowdPose's 0.53 · w · h and its joint `head` is called `top_head`. Raises DatasetError
    on anything that would make training or evaluation wrong: a broken file, repeated ids, people in
    unknown photos, keypoint lists of the wrong length, labelled joints without a box.
    """
    if isinstance(source, Mapping):
        label, data = "annotations", dict(source)
    else:
        label, data = str(source), read_json(Path(source))
    if not isinstance(data, dict) or not all(
        isinstance(data.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise DatasetError(
            f"{label}: expected a COCO object with the lists images, annotations and categories"
        )
    for key in ("images", "annotations", "categories"):
        data[key] = [plain_record(entry) for entry in data[key]]
    check_exporter(label, data)
    category = _person_category(label, data["categories"])
    image_ids = _check_images(label, data["images"])
    people = [
        person
        for person in data["annotations"]
        if _field(label, person, "category_id") == category["id"]
    ]
    if data["annotations"] and not people:
        raise DatasetError(
            f"{label}: none of its {len(data['annotations'])} annotations has the category_id "
            f"{category['id']!r} of {category.get('name', 'the person')!r}; the first has "
            f"{data['annotations'][0]['category_id']!r}"
        )
    if is_crowdpose(data):
        category, people = _without_dialect(category, people)
    data["categories"] = [category]
    data["annotations"] = people
    names = category.get("keypoints") or ()
    count = joint_count(names, people)
    if filled := sum([fill_in(person, count) for person in people]):
        data[NOTES] = {AREA_OF_BOX: filled}
    for person in people:
        _check_person(label, person, image_ids, count)
    ids = [person["id"] for person in people]
    if len(set(ids)) != len(ids):
        raise DatasetError(f"{label}: {len(ids) - len(set(ids))} annotation ids are repeated")
    return data


def is_crowdpose(record: Mapping[str, Any]) -> bool:
    """Whether every photo of a COCO object carries CrowdPose's crowd index."""
    return bool(record["images"]) and all(CROWD_INDEX in image for image in record["images"])


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises DatasetError naming the file."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: is not valid JSON ({error})") from error


def _without_dialect(category: Record, people: list[Record]) -> tuple[Record, list[Record]]:
    """CrowdPose's category and people in COCO's words; boxes that are broken are left to checks."""
    if tuple(category.get("keypoints") or ()) == CROWDPOSE_NAMES:
        category = {**category, "keypoints": list(CROWDPOSE_14.keypoints)}
    for person in people:
        box = person.get("bbox")
        if _are_numbers(box, 4):
            assert box is not None
            person["area"] = CROWDPOSE_AREA * max(0.0, box[2]) * max(0.0, box[3])
    return category, people


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and -(1 << 63) <= value < 1 << 63


def _are_numbers(values: Any, length: int) -> bool:
    return isinstance(values, list) and len(values) == length and all(map(is_number, values))


def _field(label: str, record: Any, key: str) -> Any:
    if not isinstance(record, dict) or key not in record:
        raise DatasetError(f"{label}: every entry needs {key!r}, got {str(record)[:120]}")
    return record[key]


def _person_category(label: str, categories: Sequence[Any]) -> Record:
    """The one category that has keypoints (or the only one, when it does not list them).

    Of several the one that is called person.
    """
    with_names = [c for c in categories if isinstance(c, dict) and c.get("keypoints")]
    chosen = with_names or [c for c in categories if isinstance(c, dict)]
    if len(chosen) > 1:
        chosen = [c for c in chosen if str(c.get("name", "")).lower() == PERSON] or chosen
    if len(chosen) != 1 or "id" not in chosen[0]:
        way = "; cfpose-train data convert joins those of the same joints" if with_names else ""
        raise DatasetError(
            f"{label}: expected exactly one category with keypoints, or one called {PERSON}, found "
            f"{len(chosen)}{way}"
        )
    names = chosen[0].get("keypoints") or []
    if not (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
    ):
        raise DatasetError(
            f"{label}: the category's keypoints must be a list of different names, got "
            f"{str(names)[:120]}"
        )
    return dict(chosen[0])


def _check_images(label: str, images: Sequence[Any]) -> set[int]:
    ids = [_field(label, image, "id") for image in images]
    for image in images:
        name = _field(label, image, "file_name")
        if not isinstance(name, str) or not name:
            raise DatasetError(f"{label}: image {image['id']} has the file name {name!r}")
        for side in ("width", "height"):
            length = image.get(side, 1)
            if not isinstance(length, int) or not 1 <= length < _LARGEST_SIDE:
                raise DatasetError(
                    f"{label}: image {image['id']} has the {side} {length!r}, expected pixels"
                )
        index = image.get(CROWD_INDEX, 0)
        if not is_number(index):
            raise DatasetError(f"{label}: image {image['id']} has the crowdIndex {index!r}")
    if not all(map(_is_id, ids)):
        raise DatasetError(f"{label}: image ids must be integers of 64 bits")
    if len(set(ids)) != len(ids):
        raise DatasetError(f"{label}: {len(ids) - len(set(ids))} image ids are repeated")
    return set(ids)


def _check_person(label: str, person: Record, image_ids: set[int], count: int) -> None:
    where = f"{label}: annotation {person.get('id', '?')}"
    for key in ("id", "image_id", "bbox", "keypoints", "area"):
        if key not in person:
            raise DatasetError(f"{where} lacks {key!r}")
    for key in ("id", "image_id"):
        if not _is_id(person[key]):
            raise DatasetError(f"{where} has {key} {person[key]!r}, expected an integer of 64 bits")
    if person["image_id"] not in image_ids:
        raise DatasetError(f"{where} is in photo {person['image_id']}, which is not listed")
    for key, length in (("keypoints", 3 * count), ("bbox", 4)):
        values = person[key]
        if not isinstance(values, list) or len(values) != length:
            raise DatasetError(f"{where} needs {length} numbers in {key!r}, got {str(values)[:80]}")
        if not _are_numbers(values, length):
            raise DatasetError(f"{where} has a value in {key!r} that is not a finite number")
    if not _are_numbers([person["area"]], 1) or person["area"] < 0:
        raise DatasetError(f"{where} has the area {person['area']!r}")
    _check_visibility(where, person)


def _check_visibility(where: str, person: Record) -> None:
    """v, `num_keypoints` and `iscrowd`; the latter two are filled in where absent."""
    flags = person["keypoints"][2::3]
    if wrong := [v for v in flags if v not in (0, 1, 2)]:
        raise DatasetError(f"{where} has the visibility {wrong[0]}, expected 0, 1 or 2")
    labelled = sum(v > 0 for v in flags)
    stated = person.setdefault("num_keypoints", labelled)
    if not isinstance(stated, int) or stated < 0 or (stated > 0 and labelled == 0):
        raise DatasetError(
            f"{where} states num_keypoints {stated!r}, {labelled} of its joints are labelled"
        )
    if person.setdefault("iscrowd", 0) not in (0, 1):
        raise DatasetError(f"{where} has iscrowd {person['iscrowd']!r}, expected 0 or 1")
