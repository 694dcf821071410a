"""The estimate of a batch: the stages by hand, chunks, and what is kept while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk.backends import open_backend
from cfpose_sdk.boxes import letterbox, nms
from cfpose_sdk.crops import crop_transforms, invert_transforms
from cfpose_sdk.detectors.base import BUNDLED_FINDER, PersonFinder
from cfpose_sdk.estimator import BUNDLED_MODEL, PoseEstimator
from cfpose_sdk.media.image import read_image

PHOTOS = ("street.jpg", "basketball1.jpg")


def found_by_hand(image: np.ndarray, finder: PersonFinder) -> tuple[np.ndarray, np.ndarray]:
    """Scale and clip every box that the finder's graph returns, then choose."""
    canvas, scale = letterbox(image, finder.spec.size_wh, finder.spec.pad_value, cut=True)
    with open_backend(BUNDLED_FINDER, device="cpu", threads=1) as network:
        outputs = network.run({"images": canvas[None]})
    height, width = image.shape[:2]
    edges = np.array([width, height, width, height], np.float32)
    boxes, scores = np.clip(outputs["boxes"][0] / scale, 0, edges), outputs["scores"][0]
    keep = (scores >= finder.threshold) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    kept = nms(boxes[keep], scores[keep], finder.nms_iou)
    return boxes[keep][kept], scores[keep][kept]


@pytest.mark.parametrize("name", PHOTOS)
def test_predict_is_its_stages_one_by_one(root: Path, name: str) -> None:
    image = read_image(root / "examples" / "photos" / name)
    with PoseEstimator(device="cpu", threads=1) as estimator, PersonFinder(threads=1) as finder:
        poses, spec = estimator.predict(image), estimator.spec
        boxes, scores = found_by_hand(image, finder)
    np.testing.assert_array_equal(poses.boxes, boxes)
    np.testing.assert_array_equal(poses.box_scores, scores)
    maps = crop_transforms(boxes, spec.size_wh, spec.box_scale)
    crops = np.stack([cv2.warpAffine(image, each, spec.size_wh) for each in maps])
    with open_backend(BUNDLED_MODEL, device="cpu", threads=1) as network:
        outputs = network.run({"crops": crops})
    np.testing.assert_array_equal(poses.confidence, outputs["confidence"].clip(0, 1))
    back = invert_transforms(maps)
    points = np.concatenate([outputs["keypoints"], np.ones((*boxes.shape[:1], 17, 1))], axis=-1)
    np.testing.assert_allclose(poses.xy, points @ back.swapaxes(1, 2), rtol=1e-6)
    linear = back[:, None, :, :2]
    expected = linear @ outputs["covariance"] @ linear.swapaxes(-1, -2)
    assert poses.covariance is not None
    np.testing.assert_allclose(poses.covariance, expected, rtol=1e-6)


@pytest.mark.parametrize("most", [1, 3, 5, 16])
def test_chunks_never_exceed_what_the_artifact_takes(
    pose_model: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as an engine whose profile ends at `most` people
    monkeypatch.setattr("cfpose_sdk.backends.onnxruntime.OnnxBackend.max_batch", most)
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (60 + 7 * n, 80, 3), dtype=np.uint8) for n in range(5)]
    boxes: list[Any] = [[[5 + n, 5, 40, 50 + n] for n in range(count)] for count in (2, 0, 4, 1, 3)]
    sizes: list[int] = []
    with PoseEstimator(pose_model, batch_size=32, threads=1) as estimator:
        singles = [estimator.predict(i, boxes=b) for i, b in zip(images, boxes, strict=True)]
        run = estimator._backend.run
        monkeypatch.setattr(
            estimator._backend,
            "run",
            lambda feeds: (sizes.append(len(feeds["crops"])), run(feeds))[1],
        )
        together = estimator.predict_batch(images, boxes=boxes)
    assert sizes == [most] * (10 // most) + [10 % most] * (10 % most > 0)
    for one, other in zip(singles, together, strict=True):
        np.testing.assert_array_equal(one.xy, other.xy)
        np.testing.assert_array_equal(one.confidence, other.confidence)
        assert (other.speed_ms["infer"] > 0) == (len(other) > 0)
