"""PoseEstimator with a model whose answer is a known function of the crop."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpose_sdk.detectors.base import Detections, PersonFinder
from cfpose_sdk.errors import (
    ArtifactError,
    BackendError,
    BoxError,
    ImageError,
    InputError,
    SpecError,
)
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import CROWDPOSE_14
from cfpose_sdk.spec import SPEC_KEY

STAGES = {"read", "detect", "crop", "infer", "post", "total"}


def refuse(image: np.ndarray) -> object:
    raise RuntimeError("the detector must not run")


@pytest.fixture(scope="module")
def pose(pose_model: Path) -> PoseEstimator:
    """The brightest-pixel model; its detector must never be asked."""
    return PoseEstimator(pose_model, detector=refuse)


def dot(x: int, y: int, size_wh: tuple[int, int] = (200, 300), radius: int = 0) -> np.ndarray:
    """A black image with one bright spot."""
    image = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    cv2.circle(image, (x, y), radius, (255, 255, 255), cv2.FILLED)
    return image


def cone(x: int, y: int) -> np.ndarray:
    """A 200 x 300 image that gets darker with the distance from its brightest pixel (x, y)."""
    v, u = np.mgrid[:300, :200]
    grey = np.clip(255 - 3 * np.hypot(u - x, v - y), 0, 255).astype(np.uint8)
    return np.stack([grey] * 3, axis=-1)


def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(6)
    sizes = [(90, 120), (300, 200), (64, 64), (33, 57)]
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes]


BOXES: list[Any] = [
    [[5, 5, 60, 80], [-20, 10, 50, 130]],
    [],
    [[10, 10, 30, 60]],
    [[0, 0, 57, 33], [1, 1, 9, 9], [30, 5, 70, 30]],
]


def assert_same(a: Poses, b: Poses) -> None:
    np.testing.assert_allclose(a.xy, b.xy, atol=1e-4)
    np.testing.assert_allclose(a.confidence, b.confidence, atol=1e-6)
    np.testing.assert_array_equal(a.boxes, b.boxes)
    assert a.image_size_wh == b.image_size_wh


@given(
    st.integers(40, 160),
    st.integers(60, 240),
    st.floats(20, 40),
    st.floats(30, 60),
    st.floats(-0.7, 0.7),
    st.floats(-0.7, 0.7),
)
def test_joints_return_to_the_frame(
    pose: PoseEstimator, x: int, y: int, half_w: float, half_h: float, dx: float, dy: float
) -> None:
    centre_x, centre_y = x + dx * half_w, y + dy * half_h
    box = [centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h]
    poses = pose.predict(cone(x, y), boxes=[box])
    crop_pixel = 1.25 * max(2 * half_w / 48, 2 * half_h / 64)  # in frame pixels
    # the crop's pixel nearest to the tip is at most half a diagonal away, and grey levels round
    assert np.hypot(*(poses.xy[0, 0] - [x, y])) <= crop_pixel / np.sqrt(2) + 0.5
    np.testing.assert_array_equal(poses.xy[0], np.broadcast_to(poses.xy[0, 0], (17, 2)))


@pytest.mark.parametrize("crop_pixels_per_pixel", [1, 2, 4])
def test_joints_return_exactly(pose: PoseEstimator, crop_pixels_per_pixel: int) -> None:
    # crop pixels fall on frame pixels here, so that the answer is exact: no half-pixel shift
    half = np.array([48, 64]) / 1.25 / crop_pixels_per_pixel / 2
    centre = np.array([100, 150])
    box = np.concatenate([centre - half, centre + half])
    for x, y in ([100, 150], [97, 155], [104, 146]):
        poses = pose.predict(dot(x, y), boxes=[box])
        np.testing.assert_allclose(poses.xy[0], np.broadcast_to([x, y], (17, 2)), atol=1e-4)


def test_result_fields(pose: PoseEstimator) -> None:
    image = dot(100, 150, radius=3)
    poses = pose.predict(image, boxes=[[60, 100, 140, 200]])
    assert poses.image_size_wh == (200, 300)
    assert poses.image is image
    assert poses.source is None
    assert poses.skeleton == pose.spec.skeleton
    assert poses.ids is None
    assert poses.covariance is None
    np.testing.assert_array_equal(poses.boxes, [[60, 100, 140, 200]])
    np.testing.assert_array_equal(poses.box_scores, [1])
    np.testing.assert_allclose(poses.confidence, 1.0)
    assert poses.speed_ms.keys() == STAGES
    parts = sum(value for stage, value in poses.speed_ms.items() if stage != "total")
    assert poses.speed_ms["total"] == pytest.approx(parts)
    assert poses.speed_ms["infer"] > 0


def test_batch_equals_singles(pose_model: Path) -> None:
    images = photos()
    with PoseEstimator(pose_model, detector=refuse) as pose:
        singles = [pose.predict(i, boxes=b) for i, b in zip(images, BOXES, strict=True)]
    for batch_size in (1, 2, 4, 32):
        with PoseEstimator(pose_model, detector=refuse, batch_size=batch_size) as pose:
            batch = pose.predict_batch(images, boxes=BOXES)
        assert [len(poses) for poses in batch] == [2, 0, 1, 3]
        for single, together in zip(singles, batch, strict=True):
            assert_same(single, together)


def test_crops_of_all_images_share_batches(
    pose_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PoseEstimator(pose_model, detector=refuse, batch_size=4) as pose:
        sizes: list[int] = []
        run = pose._backend.run
        monkeypatch.setattr(
            pose._backend, "run", lambda feeds: (sizes.append(len(feeds["crops"])), run(feeds))[1]
        )
        pose.predict_batch(photos(), boxes=BOXES)
        assert sizes == [4, 2]


def test_nobody_never_reaches_a_network(pose_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PoseEstimator(pose_model, detector=lambda image: []) as pose:
        monkeypatch.setattr(pose._backend, "run", refuse)
        image = photos()[0]
        for nobody in (
            pose.predict(image, boxes=[]),
            pose.predict(image, boxes=np.zeros((0, 4), np.float32)),
            pose.predict(image),
            *pose.predict_batch([image, image]),
            *pose.predict_batch([image], boxes=[[]]),
        ):
            assert len(nobody) == 0
            assert nobody.xy.shape == (0, 17, 2)
            assert nobody.image_size_wh == (120, 90)
            assert nobody.speed_ms.keys() == STAGES
        assert pose.predict_batch([]) == []


def test_detectors_of_every_kind_agree(pose_model: Path, finder_model: Path) -> None:
    image = dot(20, 40, (64, 128), radius=2)
    with PersonFinder(finder_model) as finder:
        found = finder(image)
        kinds: list[Any] = [
            finder_model,
            str(finder_model),
            finder,
            lambda _: found,
            lambda _: np.column_stack([found.boxes, found.scores]),
        ]
        results = [PoseEstimator(pose_model, detector=kind).predict(image) for kind in kinds]
        for poses in results:
            assert_same(poses, results[0])
            np.testing.assert_array_equal(poses.box_scores, found.scores)
        unscored = PoseEstimator(pose_model, detector=lambda _: found.boxes.tolist())
        np.testing.assert_array_equal(unscored.predict(image).box_scores, [1, 1])


def test_own_finder_stays_open(pose_model: Path, finder_model: Path) -> None:
    with PersonFinder(finder_model) as finder:
        PoseEstimator(pose_model, detector=finder).close()
        assert len(finder(np.zeros((128, 64, 3), np.uint8))) == 2
    opened = PoseEstimator(pose_model, detector=finder_model)
    opened.close()
    with pytest.raises(BackendError, match=r"PoseEstimator .* is closed"):
        opened.predict(photos()[0])


def test_boxes_with_scores(pose: PoseEstimator) -> None:
    image = photos()[0]
    scored = pose.predict(image, boxes=[[1, 2, 30, 40, 0.5]])
    np.testing.assert_array_equal(scored.box_scores, [0.5])
    given_boxes = Detections(np.array([[1, 2, 30, 40]]), np.array([0.5]))
    assert_same(scored, pose.predict(image, boxes=given_boxes))


def test_bundled_finder_is_opened_only_when_needed(
    pose_model: Path, finder_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfpose_sdk.detectors.base.BUNDLED_FINDER", tmp_path / "gone.onnx")
    image = np.zeros((128, 64, 3), np.uint8)
    pose = PoseEstimator(pose_model)
    assert len(pose.predict(image, boxes=[[1, 1, 20, 20]])) == 1
    assert "not yet opened" in pose.info.detector
    with pytest.raises(ArtifactError, match="does not exist"):
        pose.predict(image)
    monkeypatch.setattr("cfpose_sdk.detectors.base.BUNDLED_FINDER", finder_model)
    assert len(pose.predict(image)) == 2
    assert "constant" in pose.info.detector


def test_missing_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfpose_sdk.estimator.BUNDLED_MODEL", tmp_path / "gone.onnx")
    with pytest.raises(ArtifactError, match="does not exist"):
        PoseEstimator()


def test_info(pose: PoseEstimator, pose_model: Path) -> None:
    info = pose.info
    assert info.model == str(pose_model)
    assert info.name == "brightest"
    assert (info.provider, info.device) == ("CPUExecutionProvider", "cpu")
    assert info.detector == "refuse"


def test_paths_and_grey_images(pose: PoseEstimator, tmp_path: Path) -> None:
    image = dot(100, 150, radius=2)
    path = tmp_path / "123.png"
    cv2.imwrite(str(path), image)
    box = [[60, 100, 140, 200]]
    from_array = pose.predict(image, boxes=box)
    for item in (path, str(path), image[..., 0], image[..., :1]):
        assert_same(pose.predict(item, boxes=box), from_array)
    from_file = pose.predict(path, boxes=box)
    assert from_file.source == "123.png"
    assert from_file.to_coco()[0]["image_id"] == 123


def test_covariance_is_carried_into_the_frame(tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save_pose_model(tmp_path / "c.onnx", covariance=3.0)
    # a 96 x 128 box in a 48 x 64 crop at box scale 1.25: a crop pixel is 2.5 frame pixels
    poses = PoseEstimator(path).predict(photos()[1], boxes=[[20, 20, 116, 148]])
    assert poses.covariance is not None
    expected = np.diag([3.0, 6.0]) * 2.5**2
    np.testing.assert_allclose(poses.covariance[0, 0], expected, rtol=1e-5)


def test_other_skeletons(tiny: ModuleType, tmp_path: Path) -> None:
    spec = dataclasses.replace(tiny.SPEC, skeleton=CROWDPOSE_14)
    path = tiny.save_pose_model(tmp_path / "crowd.onnx", spec=spec)
    poses = PoseEstimator(path).predict(photos()[0], boxes=[[5, 5, 60, 80]])
    assert poses.xy.shape == (1, 14, 2)
    assert poses.skeleton == CROWDPOSE_14


@pytest.mark.parametrize(
    ("boxes", "cause"),
    [
        ([[0, 0, float("nan"), 5]], "finite"),
        ([[5, 5, 1, 9]], "x2 > x1"),
        ([1, 2, 3, 4], r"\[box\]"),
        ([[1, 2, 3]], "shape"),
        ("all", "numbers"),
    ],
)
def test_bad_boxes(pose: PoseEstimator, boxes: object, cause: str) -> None:
    with pytest.raises(BoxError, match=cause):
        pose.predict(photos()[0], boxes=boxes)
    wrong = PoseEstimator(Path(pose.info.model), detector=lambda _: boxes)
    with pytest.raises(BoxError, match=cause):
        wrong.predict(photos()[0])


def test_bad_images(pose: PoseEstimator, tmp_path: Path) -> None:
    for image in (tmp_path / "absent.jpg", np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8), 7):
        with pytest.raises(ImageError):
            pose.predict(image)  # type: ignore[arg-type]


def test_wrong_use_of_batches(pose: PoseEstimator) -> None:
    image = photos()[0]
    for one in (image, image[..., 0], "photo.jpg"):
        with pytest.raises(InputError, match="use predict"):
            pose.predict_batch(one)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="each of the 2 images, got 1"):
        pose.predict_batch([image, image], boxes=[[]])
    stack = np.stack([image, image])
    assert len(pose.predict_batch(stack, boxes=[[], [[1, 1, 5, 5]]])[1]) == 1  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size"):
        PoseEstimator(Path(pose.info.model), batch_size=0)


def test_foreign_and_newer_artifacts(tiny: ModuleType, tmp_path: Path, finder_model: Path) -> None:
    spec = tiny.SPEC

    def model(text: str) -> Path:
        path: Path = tiny.save_pose_model(tmp_path / "m.onnx", metadata={SPEC_KEY: text})
        return path

    foreign = tiny.save_pose_model(tmp_path / "foreign.onnx", metadata={})
    with pytest.raises(ArtifactError, match="not a cfpose artifact"):
        PoseEstimator(foreign)
    with pytest.raises(ArtifactError, match="not a cfpose artifact"):
        PoseEstimator(finder_model)
    with pytest.raises(SpecError, match="upgrade"):
        PoseEstimator(model(spec.to_json().replace('"spec_version": 8', '"spec_version": 99')))
    with pytest.raises(SpecError, match="not JSON"):
        PoseEstimator(model("{"))
    with pytest.raises(ArtifactError, match="expected frame, boxes → keypoints, confidence"):
        PoseEstimator(model(dataclasses.replace(spec, input="frame").to_json()))
    renamed = tiny.save_finder(
        tmp_path / "r.onnx", [[1, 1, 2, 2]], [1], metadata={SPEC_KEY: spec.to_json()}
    )
    with pytest.raises(ArtifactError, match="expected crops"):
        PoseEstimator(renamed)


def test_a_model_that_returns_nan_is_reported(tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save_pose_model(tmp_path / "nan.onnx", scale=float("nan"))
    with pytest.raises(BackendError, match="NaN"):
        PoseEstimator(path).predict(photos()[0], boxes=[[1, 1, 20, 20]])


def test_threads_share_one_estimator(pose_model: Path, finder_model: Path) -> None:
    images = [dot(x, y, (64, 128), radius=2) for x, y in [(10, 20), (30, 90), (22, 66), (50, 30)]]
    with PoseEstimator(pose_model, detector=finder_model) as pose:
        expected = [pose.predict(image) for image in images]
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(pose.predict, images * 8))
    for n, poses in enumerate(results):
        assert_same(poses, expected[n % 4])


def test_threads_open_the_bundled_finder_once(
    pose_model: Path, finder_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[PersonFinder] = []

    def slow_finder(**options: Any) -> PersonFinder:
        time.sleep(0.05)
        opened.append(PersonFinder(finder_model, **options))
        return opened[-1]

    monkeypatch.setattr("cfpose_sdk.detectors.lazy.PersonFinder", slow_finder)
    pose = PoseEstimator(pose_model)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(pose.predict, [dot(10, 20, (64, 128))] * 8))
    assert len(opened) == 1
    assert [len(poses) for poses in results] == [2] * 8


def test_stream_of_arrays_is_lazy(pose_model: Path) -> None:
    taken: list[int] = []

    def source() -> Any:
        for n, image in enumerate(photos()):
            taken.append(n)
            yield image

    pose = PoseEstimator(pose_model, detector=lambda image: [[2, 2, 30, 30]])
    stream = pose.stream(source())
    assert taken == []
    assert next(stream).image_size_wh == (120, 90)
    assert taken == [0]
    assert len(list(stream)) == 3
