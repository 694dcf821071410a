"""`cfpose-train data convert` and `data show`: annotations of other tools as COCO, and drawn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cfpose_bench.data.annotations import is_counted, read_annotations, read_json
from cfpose_sdk.errors import CfposeError, DatasetError, InputError
from cfpose_sdk.files import write_file
from cfpose_sdk.media.draw import draw_poses
from cfpose_sdk.media.image import Image, read_image, write_picture
from cfpose_training.layouts.label_studio import read_tasks
from cfpose_training.layouts.repair import repaired
from cfpose_training.layouts.yolo import read_yolo
from cfpose_training.pose.pictures import mosaic
from cfpose_training.skeletons import skeleton_of

SHOWN_PX = 480  # longer side of a photo in the mosaic


def convert_annotations(
    source: Path, target: Path, images: Path | None = None, joints: Sequence[str] = ()
) -> tuple[str, ...]:
    """Write a whole COCO keypoint file; what was read and mended, a line each.

    `source`: Ultralytics' YAML, Label Studio's JSON, or a COCO file that lacks something or does
    not fit its photos, which `images` then holds. `joints`: names, where the source has none.
    Raises DatasetError when it is none of them, or what comes out cannot be trained on.
    """
    try:
        record, lines, done = _read(source, images, joints)
    except CfposeError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{source} is not laid out as expected: {type(error).__name__}, {error}; every entry "
            f"needs the fields that its tool writes, with numbers where those are numbers"
        ) from error
    whole = read_annotations(record)
    counted = [person for person in whole["annotations"] if is_counted(person)]
    if not counted:
        raise DatasetError(f"{source}: nobody has a labelled joint")
    write_file(target, json.dumps(record))
    lines.append(f"{len(counted)} people with labelled joints on {len(record['images'])} photos")
    lines += [f"mended: {count} {what}" for what, count in done.items() if count]
    return tuple(lines)


def _read(
    source: Path, images: Path | None, joints: Sequence[str]
) -> tuple[dict[str, Any], list[str], Counter[str]]:
    """The mended COCO object, what it was, and what was mended how often."""
    if source.suffix.lower() in (".yaml", ".yml"):
        record, folder = read_yolo(source, joints)
        return record, [f"Ultralytics' labels; their photos: --images {folder}"], Counter()
    content = read_json(source)
    if isinstance(content, list):
        record, lines = read_tasks(content, joints, images), ["Label Studio's tasks"]
        if sigmas := record["categories"][0].get("oks_sigmas"):
            lines.append(f"sigmas, from people whom two annotators labelled: {sigmas}")
    elif isinstance(content, dict) and isinstance(content.get("annotations"), list):
        record, lines = _named(content, joints), ["a COCO file"]
    else:
        raise DatasetError(
            f"{source} is neither Ultralytics' YAML, nor Label Studio's JSON, nor a COCO file"
        )
    record, done = repaired(record, images)
    return record, lines, done


def _named(record: dict[str, Any], joints: Sequence[str]) -> dict[str, Any]:
    """With `joints` the names of the one category that has none, or other ones."""
    if not joints:
        return record
    with_names = [c for c in record["categories"] if c.get("keypoints")] or record["categories"]
    named = {**with_names[0], "keypoints": list(joints)}
    categories = [named if c is with_names[0] else c for c in record["categories"]]
    return {**record, "categories": categories}


def show_annotations(annotations: Path, images: Path, target: Path, count: int) -> int:
    """A mosaic of `count` photos, evenly spread, with their people; how many people are on it.

    Hidden joints (v = 1) are drawn as visible ones. Raises DatasetError when nobody is
    labelled, InputError for a target that is one of the photos.
    """
    record = read_annotations(annotations)
    skeleton = skeleton_of(record["categories"][0], str(annotations))
    people: dict[int, list[dict[str, Any]]] = {}
    for person in record["annotations"]:
        if is_counted(person):
            people.setdefault(person["image_id"], []).append(person)
    photos = [image for image in record["images"] if image["id"] in people]
    if not photos:
        raise DatasetError(f"{annotations}: nobody has a labelled joint")
    if target.resolve() in {(images / photo["file_name"]).resolve() for photo in photos}:
        raise InputError(f"{target} is one of the photos, which would be overwritten")
    chosen = [photos[i] for i in np.unique(np.linspace(0, len(photos) - 1, count).astype(int))]
    tiles: list[Image] = []
    total = 0
    for photo in chosen:
        here = people[photo["id"]]
        total += len(here)
        joints = np.array([p["keypoints"] for p in here], dtype=float).reshape(len(here), -1, 3)
        boxes = np.array([p["bbox"] for p in here], dtype=float)
        boxes[:, 2:] += boxes[:, :2]
        image = read_image(images / photo["file_name"])
        drawn = draw_poses(
            image, joints[..., :2], (joints[..., 2] > 0).astype(float), boxes, skeleton,
            threshold=0.5, show_boxes=True, labels=[str(p["id"]) for p in here], colours="sides",
        )  # fmt: skip
        scale = SHOWN_PX / max(drawn.shape[:2])
        size = round(drawn.shape[1] * scale), round(drawn.shape[0] * scale)
        tiles.append(np.asarray(cv2.resize(drawn, size, interpolation=cv2.INTER_AREA), np.uint8))
    write_picture(target, mosaic(tiles))
    return total
