"""Small annotated datasets, built by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_bench.models import open
from cfpose_sdk.skeleton import COCO_17, Skeleton
from tests.bench.known_answer import KnowsTheAnswer

Record = dict[str, Any]


@pytest.fixture
def person() -> Callable[..., Record]:
    """person(image_id, x, y, size, ...): joints on a diagonal in a square box at (x, y)."""

    def build(
        image_id: int,
        x: float = 10.0,
        y: float = 20.0,
        size: float = 100.0,
        *,
        labelled: int | None = None,
        iscrowd: int = 0,
        skeleton: Skeleton = COCO_17,
    ) -> Record:
        joints = len(skeleton)
        labelled = joints if labelled is None else labelled
        steps = np.linspace(0.1, 0.9, joints) * size
        points = np.stack([x + steps, y + steps, np.full(joints, 2.0)], axis=1)
        points[labelled:] = 0
        return {
            "image_id": image_id,
            "category_id": 1,
            "iscrowd": iscrowd,
            "bbox": [x, y, size, size],
            "area": size * size,
            "num_keypoints": labelled,
            "keypoints": points.ravel().tolist(),
        }

    return build


@pytest.fixture
def annotate() -> Callable[..., Record]:
    """annotate(people, photos=ids): a COCO object; annotation ids count up from 0."""

    def build(
        people: Sequence[Record],
        photos: Sequence[int] | None = None,
        skeleton: Skeleton = COCO_17,
    ) -> Record:
        ids = sorted({p["image_id"] for p in people}) if photos is None else photos
        return {
            "images": [
                {"id": i, "file_name": f"{i:012d}.png", "width": 320, "height": 240} for i in ids
            ],
            "annotations": [{**p, "id": n} for n, p in enumerate(people)],
            "categories": [{"id": 1, "name": "person", "keypoints": list(skeleton.keypoints)}],
        }

    return build


@pytest.fixture
def pose() -> Callable[..., Record]:
    """pose(person, score, shift_x): the person's joints as a COCO result."""

    def build(person: Record, score: float = 1.0, shift_x: float = 0.0) -> Record:
        points = np.array(person["keypoints"]).reshape(-1, 3)
        points[:, 0] += shift_x
        return {
            "image_id": person["image_id"],
            "category_id": 1,
            "keypoints": points.ravel().tolist(),
            "score": score,
        }

    return build


@pytest.fixture
def dataset_folder(
    tmp_path: Path, person: Callable[..., Record], annotate: Callable[..., Record]
) -> Path:
    """Three photos, four people (one crowd), as DIR/annotations.json and DIR/images."""
    people = [
        person(1),
        person(1, 150, 30, 80),
        person(2, 40, 40, 150),
        person(3, 0, 0, 90, labelled=0, iscrowd=1),
    ]
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations.json").write_text(json.dumps(annotate(people)))
    for image_id in (1, 2, 3):
        image = np.full((240, 320, 3), 40 * image_id, np.uint8)
        assert cv2.imwrite(str(folder / "images" / f"{image_id:012d}.png"), image)
    return folder


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[KnowsTheAnswer]:
    """What cfpose-bench opens in the place of a model; the test may set its attributes."""
    chosen = type("StandIn", (KnowsTheAnswer,), {})
    monkeypatch.setattr(open, "PoseEstimator", chosen)
    finder = SimpleNamespace(name="finder-x", threshold=0.25, close=lambda: None)
    monkeypatch.setattr(open, "PersonFinder", lambda path, **options: finder)
    return chosen
