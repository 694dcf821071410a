"""COCO files as annotation tools write them, made whole: sizes, turns, boxes, visibility.

Sources: the exporters of COCO Annotator, CVAT's datumaro and X-AnyLabeling, and files of theirs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cfpose_sdk.commands import watched
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.media.image import Image, read_image
from cfpose_training.data.people import ends_at_joints

Record = dict[str, Any]
Points = NDArray[np.float64]
BOX_MARGIN = 0.1  # of the sides of the joints' box, on each side of it, where nobody drew one
SAME_ASPECT = 0.02  # photos whose proportions differ by less were scaled
NO_VISIBILITY = "joints without visibility taken as visible"
BOX_OF_JOINTS = "people without a box, who get one about their joints"
TIGHT = "boxes that ended at the outermost joints, grown by a tenth on each side"
JOINED = "people whose joints and box were two annotations"
SAME_JOINTS = "people of other categories with the same joints"
SCALED = "photos of another scale than annotated"
TURNED = "photos turned after they were annotated"


def repaired(record: Record, images: Path | None) -> tuple[Record, Counter[str]]:
    """A whole copy of a COCO keypoint object, and what was mended how often.

    Categories with the same joints become the first of them. Joints as x, y alone get v = 2, or 0
    at (0, 0). People with labelled joints and no box get that of an annotation without joints that
    holds them, else one about the joints; a box that ends at the joints, as CVAT's skeletons have,
    is grown. With `images` the coordinates fit the photos as they are read: upright, and in their
    own size. Raises DatasetError for a photo that is missing or of other proportions.
    """
    done: Counter[str] = Counter()
    record = _one_category(record, done)
    joints = len(next((c["keypoints"] for c in _with_joints(record)), ()))
    people = [_with_visibility(person, joints, done) for person in record["annotations"]]
    people = [_with_box(person, done) for person in _joined(people, done)]
    photos = [dict(image) for image in record["images"]]
    if images is not None:
        maps = _photo_maps(photos, images, done)
        people = [_moved(p, maps[p["image_id"]]) if p["image_id"] in maps else p for p in people]
    return {**record, "images": photos, "annotations": people}, done


def _with_joints(record: Record) -> list[Record]:
    return [c for c in record["categories"] if isinstance(c, dict) and c.get("keypoints")]


def _one_category(record: Record, done: Counter[str]) -> Record:
    """Categories that name the same joints, as one; others are left to the checks that follow."""
    first, *others = _with_joints(record) or [{}]
    if not others or any(c["keypoints"] != first["keypoints"] for c in others):
        return record
    ids = [c.get("id") for c in others]
    people = []
    for person in record["annotations"]:
        moves = person.get("category_id") in ids
        done[SAME_JOINTS] += moves
        people.append({**person, "category_id": first["id"]} if moves else person)
    kept = [c for c in record["categories"] if not any(c is other for other in others)]
    return {**record, "categories": kept, "annotations": people}


def _with_visibility(person: Mapping[str, Any], joints: int, done: Counter[str]) -> Record:
    """A copy with v for each joint, and `num_keypoints`."""
    whole = dict(person)
    flat = whole.get("keypoints") or []
    if joints and len(flat) == 2 * joints:
        xy = np.array(flat, dtype=float).reshape(-1, 2)
        seen = np.where((xy == 0).all(axis=1), 0, 2)
        whole["keypoints"] = np.column_stack([xy, seen]).ravel().tolist()
        done[NO_VISIBILITY] += int((seen > 0).sum())
    whole["num_keypoints"] = len(_labelled(whole))
    whole.setdefault("iscrowd", 0)
    return whole


def _labelled(person: Mapping[str, Any]) -> Points:
    """(M, 2) its labelled joints; none where the list is broken, which the checks name."""
    flat = person.get("keypoints") or []
    rows = np.array(flat if len(flat) % 3 == 0 else [], dtype=float).reshape(-1, 3)
    return rows[rows[:, 2] > 0, :2]


def _box(person: Mapping[str, Any]) -> list[float] | None:
    """Its box, when that has a width and a height."""
    box = person.get("bbox") or []
    return list(box) if len(box) == 4 and box[2] > 0 and box[3] > 0 else None


def _joined(people: Sequence[Record], done: Counter[str]) -> list[Record]:
    """People of joints alone take the smallest box of their category without joints around them."""
    free: dict[Any, list[Record]] = {}
    for person in people:
        if not person["num_keypoints"] and _box(person) and not person["iscrowd"]:
            free.setdefault((person.get("image_id"), person.get("category_id")), []).append(person)
    taken: set[int] = set()
    joined = []
    for person in people:
        xy = _labelled(person)
        if len(xy) and _box(person) is None:
            held = [
                other
                for other in free.get((person.get("image_id"), person.get("category_id")), [])
                if id(other) not in taken and _holds(other["bbox"], xy)
            ]
            if held:
                other = min(held, key=lambda each: each["bbox"][2] * each["bbox"][3])
                taken.add(id(other))
                person = {**person, "bbox": other["bbox"], "area": other.get("area")}
                done[JOINED] += 1
        joined.append(person)
    return [person for person, old in zip(joined, people, strict=True) if id(old) not in taken]


def _holds(box: Sequence[float], xy: Points) -> bool:
    start = np.array(box[:2], dtype=float)
    return bool(((xy >= start) & (xy <= start + np.array(box[2:], dtype=float))).all())


def _with_box(person: Record, done: Counter[str]) -> Record:
    """With a box that is wider than the joints, and an area."""
    xy, box = _labelled(person), _box(person)
    area = person.get("area")
    if len(xy) and box is None:
        person["bbox"] = box_of(xy)
        done[BOX_OF_JOINTS] += 1
    elif box is not None and ends_at_joints(box, xy):
        person["bbox"] = box_of(xy)
        if area and math.isclose(area, box[2] * box[3], rel_tol=0.01):  # not that of an outline
            area = None
        done[TIGHT] += 1
    if not area and person.get("bbox"):
        person["area"] = float(person["bbox"][2] * person["bbox"][3])
    return person


def box_of(xy: Points) -> list[float]:
    """xywh box about labelled joints (M, 2), with a margin; a single joint gets one pixel."""
    low, high = xy.min(axis=0), xy.max(axis=0)
    span = np.maximum(high - low, 1.0)
    start = low - BOX_MARGIN * span
    return [*start.tolist(), *((1 + 2 * BOX_MARGIN) * span).tolist()]


def _photo_maps(
    photos: Sequence[Record], images: Path, done: Counter[str]
) -> dict[Any, Callable[[Points], Points]]:
    """How points move on each photo that is not as annotated; its record gets the new size."""
    maps: dict[Any, Callable[[Points], Points]] = {}
    for photo in tqdm(photos, desc="looking at photos", unit="photo", disable=not watched()):
        path = images / photo["file_name"]
        image = read_image(path)
        real = image.shape[1], image.shape[0]
        noted = photo.get("width") or real[0], photo.get("height") or real[1]
        photo["width"], photo["height"] = real
        if noted == real:
            continue
        if (turn := turn_of(path, image)) is not None and noted == turn[0]:
            maps[photo["id"]] = turn[1]
            done[TURNED] += 1
        elif abs(math.log(noted[0] * real[1] / (noted[1] * real[0]))) < SAME_ASPECT:
            scale = np.array([real[0] / noted[0], real[1] / noted[1]])
            maps[photo["id"]] = _scaling(scale)
            done[SCALED] += 1
        else:
            raise DatasetError(
                f"{path} is {real}, annotated {noted}: neither scaled nor turned; is it the photo "
                f"that was annotated?"
            )
    return maps


def _scaling(scale: Points) -> Callable[[Points], Points]:
    return lambda xy: xy * scale


def turn_of(
    path: Path, upright: Image
) -> tuple[tuple[int, int], Callable[[Points], Points]] | None:
    """Size of the photo as it is stored, and the map from its points to the upright photo's.

    None where the stored photo is upright.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    stored = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    if stored is None or np.array_equal(stored, upright):
        return None
    height, width = stored.shape[:2]
    for mirrored in (False, True):
        for quarters in range(4):
            plain = stored[:, ::-1] if mirrored else stored
            if np.array_equal(np.rot90(plain, quarters), upright):
                return (width, height), _turning((width, height), quarters, mirrored=mirrored)
    return None


def _turning(
    size_wh: tuple[int, int], quarters: int, *, mirrored: bool
) -> Callable[[Points], Points]:
    """As np.rot90 after a mirror moves pixels whose centres are whole numbers."""

    def turn(xy: Points) -> Points:
        width, height = size_wh
        x, y = xy[..., 0], xy[..., 1]
        if mirrored:
            x = width - 1 - x
        for _ in range(quarters):
            x, y = y, width - 1 - x
            width, height = height, width
        return np.stack([x, y], axis=-1)

    return turn


def _moved(person: Mapping[str, Any], move: Callable[[Points], Points]) -> Record:
    """A person on a photo of another size; the area follows the box."""
    moved = dict(person)
    flat = np.array(person.get("keypoints") or [], dtype=float).reshape(-1, 3)
    seen = flat[:, 2] > 0
    flat[seen, :2] = move(flat[seen, :2])
    moved["keypoints"] = flat.ravel().tolist()
    x, y, w, h = person.get("bbox") or [0, 0, 0, 0]
    corners = move(np.array([[x, y], [x + w, y + h]], dtype=float))
    low, high = corners.min(axis=0), corners.max(axis=0)
    moved["bbox"] = [*low.tolist(), *(high - low).tolist()]
    if w * h > 0 and person.get("area"):
        moved["area"] = float(person["area"] * (high - low).prod() / (w * h))
    return moved
