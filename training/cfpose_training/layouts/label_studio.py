"""Label Studio's own JSON: tasks whose results are rectangles and key points in per cent.

Source: the documentation of Label Studio's RectangleLabels and KeyPointLabels, and the tests of its
converter.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_sdk.errors import DatasetError
from cfpose_sdk.files import what_is_at
from cfpose_training.layouts.repair import box_of
from cfpose_training.layouts.spread import Labelled, spread_sigmas

Record = dict[str, Any]


def read_tasks(tasks: Sequence[Any], names: Sequence[str], images: Path | None) -> Record:
    """Tasks as a COCO object.

    A key point belongs to the rectangle that is its parent or that a relation links it with, else
    to the smallest that holds it; without rectangles all of a photo's points are one person.
    `names`: the joints in their order; () as they first occur. `images` tells how the files are
    called here: an upload's name has a prefix. Of a task's annotations the last one counts; what
    several annotators made of the same people tells the sigmas (`spread`). Raises DatasetError for
    turned photos, and where there is no key point at all.
    """
    last = [(_by_annotator(task) or [[]])[-1] for task in tasks]
    found = [part for results in last for part in _drawn(results) if _kind(part) == "keypoint"]
    seen = dict.fromkeys(_label(part) for part in found)
    names = tuple(names) or tuple(seen)
    if not found:
        raise DatasetError("the tasks hold no key points; export them as JSON, not as JSON-MIN")
    if others := [name for name in seen if name not in names]:
        raise DatasetError(f"the tasks label {', '.join(others)}, which --joints does not name")
    photos: list[Record] = []
    people: list[Record] = []
    for number, (task, results) in enumerate(zip(tasks, last, strict=True), start=1):
        parts = _drawn(results)
        if not parts:
            continue
        width, height = parts[0]["original_width"], parts[0]["original_height"]
        if any(part.get("image_rotation") for part in parts):
            raise DatasetError(
                f"task {task.get('id')}: its photo was turned while labelling; turn the file "
                f"itself and label it anew"
            )
        name = _file_name(task, images)
        photos.append({"id": number, "file_name": name, "width": width, "height": height})
        for joints, box in _people(results, names, (width, height)):
            flat = joints.ravel().tolist()
            area = float(box[2] * box[3])
            people.append(
                {"id": len(people) + 1, "image_id": number, "category_id": 1, "bbox": box,
                 "area": area, "iscrowd": 0, "keypoints": flat,
                 "num_keypoints": int((joints[:, 2] > 0).sum())}
            )  # fmt: skip
    category: Record = {"id": 1, "name": "person", "keypoints": list(names)}
    if sigmas := spread_sigmas(_twice(tasks, names), names):
        category["oks_sigmas"] = sigmas
    return {"images": photos, "annotations": people, "categories": [category]}


def _by_annotator(task: Any) -> list[list[Any]]:
    """What each annotator drew in a task, in the last annotation that was not cancelled."""
    if not isinstance(task, dict):
        raise DatasetError(f"expected Label Studio's tasks, got {str(task)[:60]}")
    by: dict[str, list[Any]] = {}
    for each in task.get("annotations") or task.get("completions") or []:
        if not each.get("was_cancelled"):
            who = each.get("completed_by")
            name = str(who.get("id") if isinstance(who, dict) else who)
            by.pop(name, None)  # the order is that of the last ones
            by[name] = list(each["result"])
    return list(by.values())


def _twice(tasks: Sequence[Any], names: Sequence[str]) -> Iterator[tuple[Labelled, Labelled]]:
    """The people whom the last two annotators of a task drew, each."""
    for task in tasks:
        drawn = [results for results in _by_annotator(task) if _drawn(results)][-2:]
        if len(drawn) == 2:
            part = _drawn(drawn[0])[0]
            size_wh = part["original_width"], part["original_height"]
            first, second = (_people(results, names, size_wh) for results in drawn)
            yield first, second


def _drawn(results: Sequence[Any]) -> list[Any]:
    """Rectangles and key points, and what else was drawn."""
    return [part for part in results if "original_width" in part]


def _links(results: Sequence[Any]) -> dict[str, set[str]]:
    """Relations, in both directions."""
    links: dict[str, set[str]] = {}
    for part in results:
        if part.get("type") == "relation":
            for a, b in ((part["from_id"], part["to_id"]), (part["to_id"], part["from_id"])):
                links.setdefault(a, set()).add(b)
    return links


def _kind(part: Mapping[str, Any]) -> str:
    return str(part.get("type", "")).removesuffix("labels")


def _label(part: Mapping[str, Any]) -> str:
    return str((part["value"].get("keypointlabels") or ["?"])[0])


def _file_name(task: Mapping[str, Any], images: Path | None) -> str:
    """The photo's name, without the eight letters that an upload gets where the file has none."""
    data = {key: text for key, text in task.get("data", {}).items() if isinstance(text, str)}
    text = data.get("image") or next(iter(data.values()), "")
    query = urllib.parse.parse_qs(text.partition("?")[2].partition("#")[0])
    name = Path(urllib.parse.unquote(query.get("d", [text])[0])).name
    head, dash, rest = name.partition("-")
    if dash and len(head) == 8 and images is not None and what_is_at(images / name) == "nothing":
        return rest
    return name


def _box(value: Mapping[str, Any], side: np.ndarray[Any, Any]) -> list[float]:
    """xywh in pixels; of a turned rectangle, which turns about its first corner, its hull."""
    start, span = (
        np.array([value[a], value[b]]) * side for a, b in (("x", "y"), ("width", "height"))
    )
    angle = np.radians(value.get("rotation") or 0)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    corners = np.array([i * span[0] * along + j * span[1] * across for i in (0, 1) for j in (0, 1)])
    low, high = corners.min(axis=0), corners.max(axis=0)
    return [*(start + low).tolist(), *(high - low).tolist()]


def _people(results: Sequence[Any], names: Sequence[str], size_wh: tuple[int, int]) -> Labelled:
    """Joints (K, 3) and the xywh box of each person that one annotator drew."""
    parts, links = _drawn(results), _links(results)
    side = np.array(size_wh) / 100
    boxes = {p["id"]: _box(p["value"], side) for p in parts if _kind(p) == "rectangle"}
    joints = {key: np.zeros((len(names), 3)) for key in boxes or [""]}
    for part in parts:
        if _kind(part) != "keypoint":
            continue
        xy = np.array([part["value"]["x"], part["value"]["y"]]) * side
        owner = _owner(part, xy, boxes, links)
        if owner in joints and _label(part) in names:
            joints[owner][names.index(_label(part))] = [*xy, 2]
    people = []
    for key, rows in joints.items():
        labelled = rows[rows[:, 2] > 0]
        if key in boxes or len(labelled):
            people.append((rows, boxes[key] if key in boxes else box_of(labelled[:, :2])))
    return people


def _owner(
    part: Mapping[str, Any],
    xy: np.ndarray[Any, Any],
    boxes: Mapping[str, list[float]],
    links: Mapping[str, set[str]],
) -> str | None:
    if not boxes:
        return ""
    if part.get("parentID") in boxes:
        return str(part["parentID"])
    if linked := [key for key in boxes if key in links.get(str(part.get("id")), ())]:
        return linked[0]
    around = [
        (w * h, key)
        for key, (x, y, w, h) in boxes.items()
        if x <= xy[0] <= x + w and y <= xy[1] <= y + h
    ]
    return min(around)[1] if around else None
