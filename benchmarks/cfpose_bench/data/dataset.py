"""Annotated photos, opened by name, folder or file, and the boxes of their people."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_bench.data.annotations import Record, is_counted, read_annotations, read_json
from cfpose_bench.data.download import COCO_HOST, COCO_VAL, Archive, coco_cache, fetch_archives
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.files import demo_photos, what_is_at
from cfpose_sdk.media.image import read_image
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17

Boxes = Mapping[int, NDArray[np.float64]]
Photos = Mapping[int, Poses | None]  # image id -> its poses; None where the photo is damaged
DATA_VARIABLE = "CFPOSE_DATA"
COCO_VAL_FILES = (  # below the data root
    "annotations/person_keypoints_val2017.json",
    "coco/annotations/person_keypoints_val2017.json",
    "person_keypoints_val.json",
    "coco/person_keypoints_val.json",
)
CROWDPOSE_FILES = (
    "json/crowdpose_test.json",
    "annotations/crowdpose_test.json",
    "annotations/mmpose_crowdpose_test.json",
    "crowdpose/json/crowdpose_test.json",
    "crowdpose/annotations/crowdpose_test.json",
    "crowdpose/annotations/mmpose_crowdpose_test.json",
)
PEOPLE_FILE = "people.json"  # beside the demo photos: file name → list of xyxy boxes
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
KNOWN = {"coco-val": COCO_VAL_FILES, "crowdpose": CROWDPOSE_FILES}  # name -> usual places


@dataclass(frozen=True)
class KeypointDataset:
    """Photos with people; boxes are xyxy pixels of the stored file (COCO's x, y, x + w, y + h)."""

    name: str
    annotations: Mapping[str, Any]  # COCO format, as `read_annotations` returns it
    photos: Mapping[int, Path]  # image id -> file, of the photos that are there; ids ascending
    missing: tuple[str, ...] = ()  # file names that are annotated but absent
    unannotated: int = 0  # photos in the folder that the annotations do not list
    has_keypoints: bool = True  # False: boxes only, which gives times and drift but no accuracy

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Ids of the photos that are there, ascending."""
        return tuple(self.photos)

    def limited(self, count: int) -> KeypointDataset:
        """The first `count` photos by id. Raises DatasetError unless count is positive."""
        if count < 1:
            raise DatasetError(f"the number of photos must be at least 1, got {count}")
        return dataclasses.replace(self, photos=dict(list(self.photos.items())[:count]))

    def ground_truth_boxes(self) -> dict[int, NDArray[np.float64]]:
        """(N, 4) boxes of each photo: people with a labelled keypoint, without crowds.

        These are the people that the evaluation counts. Crowd regions and people without keypoints
        get no box; the evaluation ignores them and whatever matches them. Where no person has
        keypoints (`has_keypoints`), it is all people but crowds.
        """
        boxes: dict[int, list[list[float]]] = {image_id: [] for image_id in self.photos}
        for person in self.annotations["annotations"]:
            counts = is_counted(person) or not (self.has_keypoints or person["iscrowd"])
            if person["image_id"] in boxes and counts:
                x, y, w, h = person["bbox"]
                if not (w > 0 and h > 0):
                    raise DatasetError(
                        f"{self.name}: annotation {person['id']} has keypoints and the box "
                        f"{person['bbox']}; width and height must be positive"
                    )
                boxes[person["image_id"]].append([x, y, x + w, y + h])
        return {
            image_id: np.array(rows, dtype=np.float64).reshape(-1, 4)
            for image_id, rows in boxes.items()
        }


def open_dataset(
    source: str | Path,
    *,
    images: str | Path | None = None,
    data_root: str | Path | None = None,
) -> KeypointDataset:
    """Open a KNOWN name, a folder, or an annotation file; photos from `images` or beside the file.

    Known names are looked for below `data_root`, else below the folder that CFPOSE_DATA names.
    Photos that are absent are listed in `missing` and take no part. Raises DatasetError when the
    annotations or all photos are absent.
    """
    known = str(source) if str(source) in KNOWN else None
    path = _find_known(known, data_root) if known else _annotation_file(Path(source))
    annotations = read_annotations(path)
    folders = [Path(images)] if images is not None else _photo_folders(path)
    if images is not None:
        _check_folder(folders[0])
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
    folder = next(
        (f for f in folders if any(os.path.isfile(f / name) for name in names.values())), None
    )
    if folder is None:
        raise DatasetError(
            f"{path}: none of its {len(names)} photos is in {', '.join(map(str, folders))}; "
            f"name their folder with --images"
        )
    files = {i: folder / name for i, name in sorted(names.items())}  # absolute names stay
    photos = {i: file for i, file in files.items() if os.path.isfile(file)}
    missing = tuple(name for i, name in sorted(names.items()) if i not in photos)
    listed = {Path(name).name for name in names.values()}
    others = sum(
        name.suffix.lower() in PHOTO_SUFFIXES and name.name not in listed
        for name in _names_in(folder)
    )
    return KeypointDataset(known or path.stem, annotations, photos, missing, others)


def _check_folder(folder: Path) -> None:
    """Raise DatasetError unless photos can be looked for in a folder that was named."""
    if not os.path.isdir(folder):
        raise DatasetError(f"--images {folder} is no folder that can be found; name the photos'")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DatasetError(f"--images {folder} cannot be looked into: permission denied")


def _names_in(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it cannot be listed, as beside absolute file names."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _find_known(name: str, data_root: str | Path | None) -> Path:
    root = data_root if data_root is not None else os.environ.get(DATA_VARIABLE)
    if not root:
        raise DatasetError(
            f"{name} needs the folder of its photos and annotations: pass --data-root or set "
            f"{DATA_VARIABLE}"
        )
    for path in (Path(root) / place for place in KNOWN[name]):
        if what_is_at(path) == "file":
            return path
    raise DatasetError(f"{name} is not in {root}: looked for {', '.join(KNOWN[name])}")


def _annotation_file(path: Path) -> Path:
    """The file itself, or the only JSON file of the folder (or of its `annotations` folder)."""
    if what_is_at(path) != "folder":
        return path
    files = sorted(path.glob("*.json")) or sorted(path.glob("annotations/*.json"))
    if len(files) != 1:
        raise DatasetError(
            f"{path}: expected exactly one annotation file, found {len(files)}; name the file"
        )
    return files[0]


def _photo_folders(path: Path) -> list[Path]:
    """Where photos usually are: person_keypoints_X.json has them in images/X or ../X."""
    parent, split = path.parent, path.stem.removeprefix("person_keypoints_")
    return [
        parent / "images" / split,
        parent.parent / split,
        parent / "images",
        parent.parent / "images",
        parent,
    ]


def find_dataset(
    source: str,
    images: str | None = None,
    data_root: str | None = None,
    mirror: str | None = None,
    archives: tuple[Archive, ...] = COCO_VAL,
) -> KeypointDataset:
    """Open the data set; `coco-val` without a data root is downloaded once into a cache.

    Raises DatasetError when it cannot be found or fetched.
    """
    if source == "demo":
        return open_demo()
    root = data_root or os.environ.get(DATA_VARIABLE)
    if source == "coco-val" and not root:
        folder = fetch_archives(archives, coco_cache(), host=mirror or COCO_HOST)
        return open_dataset(source, images=images, data_root=folder)
    return open_dataset(source, images=images, data_root=data_root)


def open_demo(folder: Path | None = None) -> KeypointDataset:
    """The demo photos, of `demo_photos` or another folder. Raises DatasetError without them."""
    folder = demo_photos() if folder is None else folder
    listing = folder / PEOPLE_FILE
    if what_is_at(listing) != "file":
        raise DatasetError(
            f"the demo photos are not in {folder}: a clone of the repository has them in "
            f"examples/photos, and the wheel in cfpose_sdk/photos; name another data set with "
            f"--dataset"
        )
    images: list[Record] = []
    people: list[Record] = []
    for image_id, (name, boxes) in enumerate(sorted(read_json(listing).items()), 1):
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
