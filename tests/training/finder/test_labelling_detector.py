"""The finder's labelling detector: YOLOX's boxes against a slow reading of its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfpose_sdk.backends import open_backend
from cfpose_sdk.boxes import letterbox
from cfpose_training.finder.boxes import open_labeller
from tests.training.yolox_cases import row, yolox_file


def scored_boxes(labeller: Path, image: np.ndarray) -> np.ndarray:
    """(N, 5) boxes and scores of the labelling detector in one photo."""
    detector = open_labeller(labeller)
    detections = detector(image)
    detector.close()
    return np.column_stack([detections.boxes, detections.scores])


def yolox_reference(raw: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(3549, 85) rows → (N, 5) boxes and scores, cell by cell, as YOLOX's paper describes them."""
    height, width = image.shape[:2]
    scale = min(416 / width, 416 / height)
    cells = [(x, y, s) for s in (8, 16, 32) for y in range(416 // s) for x in range(416 // s)]
    people: list[list[float]] = []
    for (x, y, stride), values in zip(cells, raw.astype(np.float64), strict=True):
        cx, cy = (values[0] + x) * stride, (values[1] + y) * stride
        w, h = math.exp(values[2]) * stride, math.exp(values[3]) * stride
        corners = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) / scale
        corners = corners.clip(0, [width, height, width, height])
        if (corners[2:] > corners[:2]).all():
            people.append([*corners, values[4] * values[5]])
    kept: list[list[float]] = []
    for person in sorted((p for p in people if p[4] >= 0.05), key=lambda p: -p[4]):
        if all(box_iou(person, other) <= 0.45 for other in kept):
            kept.append(person)
    return np.array(kept).reshape(-1, 5)


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two xyxy boxes."""
    w = min(one[2], other[2]) - max(one[0], other[0])
    h = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(w, 0) * max(h, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(shared / (sum(areas) - shared))


def test_yolox_rows_become_boxes_of_the_photo(tmp_path: Path) -> None:
    rows = {
        60: row(60, 8, (10, 20, 50, 120), 0.9),
        61: row(61, 8, (12, 20, 50, 120), 0.8),  # the same person again
        2704 + 5: row(5, 16, (200, 100, 300, 400), 0.5),
        3380: row(0, 32, (0, 0, 90, 90), 0.01),  # below the threshold
    }
    photo = np.zeros((832, 832, 3), dtype=np.uint8)  # at scale 0.5
    found = scored_boxes(yolox_file(tmp_path / "labeller.onnx", rows), photo)
    np.testing.assert_allclose(
        found, [[20, 40, 100, 240, 0.9], [400, 200, 600, 800, 0.5]], atol=1e-3
    )


def check_boxes_agree(found: np.ndarray, expected: np.ndarray) -> None:
    assert len(found) == len(expected)
    np.testing.assert_allclose(found[:, 4], expected[:, 4], atol=1e-3)
    for one, other in zip(found, expected, strict=True):
        assert box_iou(one, other) > 1 - 1e-3


@pytest.mark.parametrize("photo", ["street.jpg", "basketball1.jpg"])
def test_the_labelling_detector_agrees_with_the_reference_on_drawn_rows(
    photo: str, root: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    rows = {}
    for index in rng.choice(3549, 200, replace=False):
        size, objectness, person = rng.uniform(-1, 3, 2), rng.random(), rng.random()
        rows[int(index)] = [*rng.uniform(-1, 2, 2), *size, objectness, person]
    raw = np.zeros((3549, 85), dtype=np.float32)
    for index, values in rows.items():
        raw[index, :6] = values
    image = cv2.imread(str(root / "examples" / "photos" / photo))
    expected = yolox_reference(raw, image)
    assert 20 < len(expected) < 180  # some are below the threshold, some suppressed
    check_boxes_agree(scored_boxes(yolox_file(tmp_path / "labeller.onnx", rows), image), expected)


@pytest.mark.parametrize("photo", ["street.jpg", "basketball1.jpg"])
def test_yolox_nano_agrees_with_the_reference_on_photos(
    photo: str, root: Path, shared_dir: Path
) -> None:
    labeller = shared_dir / "data" / "labellers" / "yolox_nano.onnx"
    image = cv2.imread(str(root / "examples" / "photos" / photo))
    canvas, _ = letterbox(image, (416, 416), 114)
    with open_backend(labeller, device="cpu") as backend:
        feed = canvas.transpose(2, 0, 1)[None].astype(np.float32)
        (raw,) = backend.run({backend.inputs[0]: feed}).values()
    check_boxes_agree(scored_boxes(labeller, image), yolox_reference(raw[0], image))
