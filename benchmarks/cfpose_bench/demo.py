"""The photos of the examples as a mini data set: real photos and hand-drawn boxes, no keypoints.

Nobody annotated their joints, so `--dataset demo` gives times, detections and drift, and no AP.
"""

from __future__ import annotations

from pathlib import Path

from cfpose_bench.annotations import Record, read_annotations, read_json
from cfpose_bench.dataset import KeypointDataset
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.image import read_image
from cfpose_sdk.skeleton import COCO_17

PHOTOS = Path(__file__).resolve().parents[2] / "examples" / "photos"


def open_demo(folder: Path = PHOTOS) -> KeypointDataset:
    """The demo photos. Raises DatasetError where the repository's examples are not there."""
    if not (folder / "people.json").is_file():
        raise DatasetError(
            f"the demo photos are not in {folder}: they come with a clone of the repository, not "
            f"with the wheel; name another data set with --dataset"
        )
    images: list[Record] = []
    people: list[Record] = []
    for image_id, (name, boxes) in enumerate(sorted(read_json(folder / "people.json").items()), 1):
        height, width = read_image(folder / name).shape[:2]
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for x1, y1, x2, y2 in boxes:
            people.append(
                {
                    "id": len(people) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "keypoints": [0] * (3 * len(COCO_17)),
                }
            )
    category = {"id": 1, "name": "person", "keypoints": list(COCO_17.keypoints)}
    truth = read_annotations({"images": images, "annotations": people, "categories": [category]})
    photos = {image["id"]: folder / image["file_name"] for image in images}
    return KeypointDataset("demo", truth, photos, has_keypoints=False)
