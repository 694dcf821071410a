"""Annotations as tools export them, field by field, and the photo that they belong to.

After files of CVAT, Roboflow, X-AnyLabeling and Label Studio, and the exporters' own code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cfpose_training.config import Source
from cfpose_training.data.people import People, load_people
from cfpose_training.skeletons import skeleton_of

NAMES = ["nose", "left_hand", "right_hand"]
XY = [[40.0, 20.0], [60.0, 50.0], [20.0, 50.0]]  # in a photo of 100 x 80
SEEN = [2, 1, 2]
FLAT = [n for (x, y), v in zip(XY, SEEN, strict=True) for n in (x, y, v)]
BOX = [10.0, 10.0, 60.0, 50.0]


def draw_photo(tmp_path: Path) -> Path:
    """a.png of 100 x 80, with a red dot at each joint."""
    folder = tmp_path / "photos"
    folder.mkdir()
    picture = np.full((80, 100, 3), 90, np.uint8)
    for x, y in XY:
        picture[int(y), int(x)] = (0, 0, 255)
    cv2.imwrite(str(folder / "a.png"), picture)
    return folder


def people_of(annotations: Path, photos: Path) -> People:
    record = json.loads(annotations.read_text())
    category = next(c for c in record["categories"] if c.get("keypoints"))
    skeleton = skeleton_of(category, "own")
    assert list(skeleton.keypoints) == NAMES
    assert skeleton.flip_pairs == ((1, 2),)
    source = Source("own", annotations.name, str(photos))
    return load_people([source], annotations.parent, skeleton)


def cvat() -> dict[str, Any]:
    """CVAT's COCO Keypoints 1.0, a skeleton in a group with a rectangle."""
    person = {
        "id": 1, "image_id": 1, "category_id": 2, "segmentation": [], "area": 3000.0, "bbox": BOX,
        "iscrowd": 0, "attributes": {"occluded": False, "keyframe": False},
        "keypoints": FLAT, "num_keypoints": 3,
    }  # fmt: skip
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "",
                 "version": "", "year": ""},
        "categories": [{"id": 1, "name": "stage", "supercategory": "", "keypoints": [],
                        "skeleton": []},
                       {"id": 2, "name": "dancer", "supercategory": "", "keypoints": NAMES,
                        "skeleton": [[1, 2], [1, 3]]}],
        "images": [{"id": 1, "width": 100, "height": 80, "file_name": "a.png", "license": 0,
                    "flickr_url": "", "coco_url": "", "date_captured": 0}],
        "annotations": [person],
    }  # fmt: skip


def coco_annotator() -> dict[str, Any]:
    """COCO Annotator: points alone leave an empty box and no area; flags are true or false. The
    image has more fields in the file of the address /coco than in an export.
    """
    return {
        "images": [{"id": 7, "dataset_id": 1, "category_ids": [], "path": "/datasets/own/a.png",
                    "width": 100, "height": 80, "file_name": "a.png", "annotated": False,
                    "annotating": [], "num_annotations": 1, "metadata": {}, "deleted": False,
                    "milliseconds": 0, "events": [], "regenerate_thumbnail": False}],
        "categories": [{"id": 3, "name": "dancer", "supercategory": "", "color": "#1f77b4",
                        "metadata": {}, "keypoint_colors": ["#bf5c4d"] * 3, "keypoints": NAMES,
                        "skeleton": [[1, 2], [1, 3]]}],
        "annotations": [{"id": 12, "image_id": 7, "category_id": 3, "segmentation": [], "area": 0,
                         "bbox": [0, 0, 0, 0], "iscrowd": False, "isbbox": False,
                         "color": "#1f77b4", "keypoints": FLAT, "metadata": {},
                         "num_keypoints": 3}],
    }  # fmt: skip


def roboflow() -> dict[str, Any]:
    """Roboflow: ids from 0, a category of the project without joints, no num_keypoints."""
    return {
        "info": {"year": "2024", "version": "1", "description": "Exported from roboflow.com",
                 "contributor": "", "url": "", "date_created": "2024-09-10T07:12:44+00:00"},
        "licenses": [{"id": 1, "url": "", "name": "CC BY 4.0"}],
        "categories": [
            {"id": 0, "name": "dance", "supercategory": "none"},
            {"id": 1, "name": "dancer", "supercategory": "dance", "keypoints": NAMES,
             "skeleton": [[1, 2], [1, 3]]},
        ],
        "images": [{"id": 0, "license": 1, "file_name": "a.png", "height": 80, "width": 100,
                    "date_captured": "2024-09-10T07:12:44+00:00", "extra": {"name": "a.png"}}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "bbox": BOX, "area": 3000.0,
                         "segmentation": [], "iscrowd": 0, "keypoints": FLAT}],
    }  # fmt: skip


def x_anylabeling() -> dict[str, Any]:
    """X-AnyLabeling without has_visible: joints as x, y alone, absent ones at (0, 0); its classes
    are categories.
    """
    flat = [round(n) for x, y in XY for n in (x, y)]
    person = {
        "id": 0, "image_id": 0, "category_id": 1, "bbox": BOX, "area": 3000.0, "iscrowd": 0,
        "keypoints": flat, "num_keypoints": 3, "ignore": 0, "segmentation": [],
    }  # fmt: skip
    absent = {**person, "id": 1, "category_id": 2, "keypoints": [*flat[:4], 0, 0],
              "num_keypoints": 2}  # fmt: skip
    category = {"supercategory": "", "keypoints": NAMES, "skeleton": []}
    return {
        "info": {"year": 2025, "version": "3", "description": "COCO Label Conversion",
                 "contributor": "", "url": "", "date_created": "2025-01-01"},
        "licenses": [{"id": 1, "url": "", "name": ""}],
        "categories": [{"id": 1, "name": "dancer", **category},
                       {"id": 2, "name": "singer", **category}],
        "images": [{"license": 0, "url": None, "file_name": "a.png", "height": 80, "width": 100,
                    "date_captured": None, "id": 0}],
        "annotations": [person, absent],
    }  # fmt: skip


def label_studio(*, boxed: bool = True) -> list[dict[str, Any]]:
    """Label Studio's JSON: per cent of the photo, an upload's prefix, joints in any order."""
    whole = {"original_width": 100, "original_height": 80, "image_rotation": 0, "to_name": "image"}
    points = [
        {**whole, "id": f"p{n}", "from_name": "kp", "type": "keypointlabels", "origin": "manual",
         "parentID": "box1",
         "value": {"x": x, "y": y / 0.8, "width": 0.4, "keypointlabels": [NAMES[n]]}}
        for n, (x, y) in reversed(list(enumerate(XY)))
    ]  # fmt: skip
    box = {
        **whole, "id": "box1", "from_name": "label", "type": "rectanglelabels", "origin": "manual",
        "value": {"x": 10, "y": 12.5, "width": 60, "height": 62.5, "rotation": 0,
                  "rectanglelabels": ["person"]},
    }  # fmt: skip
    return [
        {
            "id": 5, "data": {"image": "/data/upload/3/0a1b2c3d-a.png"}, "total_annotations": 1,
            "annotations": [
                {"id": 9, "was_cancelled": True, "result": []},
                {"id": 10, "was_cancelled": False, "result": [*points, *([box] * boxed)]},
            ],
        }
    ]  # fmt: skip
