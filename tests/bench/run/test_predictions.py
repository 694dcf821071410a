"""Suppression in the harness, and which photos get which boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfpose_bench.data.dataset import open_dataset
from cfpose_bench.run.predictions import predict_dataset, suppress_repeats
from cfpose_sdk.detectors.base import as_detections
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17

Build = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(("side", "kept"), [(400.0, [0.9]), (20.0, [0.9, 0.8])])
def test_repeats_are_judged_by_the_area_of_their_boxes(
    person: Build, pose: Build, side: float, kept: list[float]
) -> None:
    one = person(1)
    results = [
        {**pose(one, score, shift), "bbox": [10, 20, side, side]}
        for score, shift in ((0.8, 4.0), (0.9, 0.0))
    ]
    found = suppress_repeats(results, COCO_17, 0.9)
    assert [r["score"] for r in found] == kept
    assert suppress_repeats(results[:1], COCO_17, 0.9) == results[:1]
    assert suppress_repeats([], COCO_17, 0.9) == []


class Recorder:
    """Puts all joints at the box's corner and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def predict(self, image: Path, /, boxes: Any = None) -> Poses:
        self.asked.append((image.name, None if boxes is None else np.array(boxes).tolist()))
        people = as_detections([[0, 0, 9, 9]] if boxes is None else boxes)
        return Poses(
            xy=np.repeat(people.boxes[:, None, :2], 17, axis=1),
            confidence=np.full((len(people), 17), 0.5),
            boxes=people.boxes,
            box_scores=people.scores,
            skeleton=COCO_17,
            image_size_wh=(320, 240),
            speed_ms={"total": float(len(self.asked))},
        )


def test_each_photo_gets_its_boxes_and_their_scores(dataset_folder: Path) -> None:
    model, dataset = Recorder(), open_dataset(dataset_folder)
    boxes = {2: np.array([[5.0, 6.0, 20.0, 30.0, 0.5], [50.0, 60.0, 70.0, 90.0, 1.0]])}
    done = predict_dataset(model, dataset, COCO_17, boxes=boxes, warmup=2)
    names = [f"{i:012d}.png" for i in (1, 1, 1, 2, 3)]  # two of warm-up, then every photo
    assert [name for name, _ in model.asked] == names
    assert model.asked[-1][1] == []
    assert model.asked[-2][1] == boxes[2].tolist()
    assert [r["image_id"] for r in done.results] == [2, 2]
    assert sorted(r["score"] for r in done.results) == [0.25, 0.5]
    assert [s["total"] for s in done.speed_ms] == [3.0, 4.0, 5.0]  # warm-up is not measured


def test_without_boxes_the_model_finds_them(dataset_folder: Path) -> None:
    model = Recorder()
    done = predict_dataset(model, open_dataset(dataset_folder), COCO_17, warmup=0)
    assert [boxes for _, boxes in model.asked] == [None, None, None]
    assert [r["image_id"] for r in done.results] == [1, 2, 3]
