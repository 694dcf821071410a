"""Whom to label: people of an annotation file, or detections in photos without annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cfpose_bench.data.annotations import CROWDPOSE_AREA, is_counted
from cfpose_sdk.arrays import Float64
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.files import what_is_at
from cfpose_sdk.media.frames import expand
from cfpose_sdk.skeleton import Skeleton
from cfpose_training.data.people import clipped_box

Who = Literal["unlabelled", "fill", "measure"]


@dataclass(frozen=True)
class Target:
    """A photo and the annotated `people` whose boxes are labelled; None: a detector finds them."""

    image: dict[str, Any]  # COCO's entry; width and height where known
    path: Path
    people: tuple[dict[str, Any], ...] | None
    neighbours: tuple[dict[str, Any], ...] = ()  # the people that others have labelled

    def boxes(self) -> Float64:
        """(N, 4) xyxy, inside the photo."""
        size = self.image["width"], self.image["height"]
        rows = [clipped_box(person["bbox"], *size) for person in self.people or ()]
        return np.array(rows, dtype=np.float64).reshape(-1, 4)


def annotated_targets(
    record: dict[str, Any],
    images: Path,
    who: Who,
    *,
    min_side: float = 0.0,
    holdout_every: int = 0,
    limit: int = 0,
) -> list[Target]:
    """Photos of a checked COCO record that hold people to be labelled, by id.

    `unlabelled`: who has no labelled joint and is no crowd region; `fill`, `measure`: who has.
    People whose box has a longer side below `min_side` pixels are left out, and photos whose id is
    a multiple of `holdout_every`. `limit`: photos, evenly spread, of about so many people. Raises
    DatasetError when sizes are not stated or photos are missing, InputError as `what_is_at` does.
    """
    by_image: dict[int, list[dict[str, Any]]] = {}
    for person in record["annotations"]:
        by_image.setdefault(person["image_id"], []).append(person)
    targets = []
    for image in sorted(record["images"], key=lambda image: int(image["id"])):
        if holdout_every and image["id"] % holdout_every == 0:
            continue
        if not {"width", "height"} <= image.keys():
            raise DatasetError(f"image {image['id']} lacks its width or height")
        all_people = [person for person in by_image.get(image["id"], ()) if not person["iscrowd"]]
        counted = tuple(person for person in all_people if is_counted(person))
        sought = [p for p in all_people if is_counted(p) != (who == "unlabelled")]
        wanted = tuple(p for p in sought if _longer_side(p, image) >= max(min_side, 1e-9))
        if wanted:
            neighbours = counted if who == "unlabelled" else ()
            targets.append(Target(image, images / image["file_name"], wanted, neighbours))
    chosen = _spread(targets, limit) if limit else targets
    if missing := [target.path for target in chosen if what_is_at(target.path) != "file"]:
        raise DatasetError(
            f"{len(missing)} of {len(chosen)} photos are missing, the first is {missing[0]}"
        )
    return chosen


def photo_targets(folder: Path) -> list[Target]:
    """The photos of a folder, sorted by name; their ids count from 1.

    Raises InputError when there are none.
    """
    if what_is_at(folder) != "folder":
        raise DatasetError(f"{folder} is no folder; expected one with photos")
    return [
        Target({"id": number, "file_name": path.name}, path, None)
        for number, path in enumerate(expand(folder), start=1)
    ]


def unnamed_joints(record: dict[str, Any], joints: int) -> tuple[int, ...]:
    """The joints that are labelled for no person of a record: its data set does not have them."""
    named = np.zeros(joints, dtype=bool)
    for person in record["annotations"]:
        named |= np.array(person["keypoints"][2::3]) > 0
    return tuple(int(joint) for joint in np.flatnonzero(~named))


def check_joints(record: dict[str, Any], skeleton: Skeleton, label: str) -> None:
    """Raise DatasetError unless a record's joints are those of `skeleton`."""
    names = tuple(record["categories"][0].get("keypoints") or ())
    people = record["annotations"]
    count = len(people[0]["keypoints"]) // 3 if people else len(skeleton)
    if (names and names != skeleton.keypoints) or count != len(skeleton):
        raise DatasetError(
            f"{label} has the {len(names) or count} joints {', '.join(names) or '(not named)'}; "
            f"the labeller knows the {len(skeleton)} {', '.join(skeleton.keypoints)}"
        )


def person_areas(people: Sequence[dict[str, Any]] | None, boxes: Float64) -> Float64:
    """(N,) areas for OKS: as annotated, else 0.53 of the (N, 4) xyxy box."""
    areas: Float64 = CROWDPOSE_AREA * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for index, person in enumerate(people or ()):
        if person["area"] > 0:
            areas[index] = person["area"]
    return areas


def given_joints(people: Sequence[dict[str, Any]], joints: int) -> Float64:
    """(M, K, 3) x, y, v of annotations."""
    rows = [person["keypoints"] for person in people]
    return np.array(rows, dtype=np.float64).reshape(-1, joints, 3)


def _longer_side(person: dict[str, Any], image: dict[str, Any]) -> float:
    box = clipped_box(person["bbox"], image["width"], image["height"])
    return 0.0 if box is None else max(box[2] - box[0], box[3] - box[1])


def _spread(targets: list[Target], limit: int) -> list[Target]:
    """Photos at even steps through the list, whose people are about `limit`."""
    total = sum(len(target.people or ()) for target in targets)
    if total <= limit:
        return targets
    count = max(1, round(len(targets) * limit / total))
    return [targets[int(i)] for i in np.unique(np.linspace(0, len(targets) - 1, count).round())]
