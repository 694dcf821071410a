"""An estimator's life: in threads, in other processes, closed; and a stream that looks seldom."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.backends import open_backend
from cfpose_sdk.backends.onnxruntime import OnnxBackend
from cfpose_sdk.detectors.base import Detections, PersonFinder
from cfpose_sdk.errors import ArtifactError, BackendError, InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.results import Poses


def everybody(image: np.ndarray) -> list[list[float]]:
    """A detector that can be pickled: the whole picture is one person."""
    height, width = image.shape[:2]
    return [[0, 0, width, height]]


def test_estimators_travel_to_other_processes(pose_model: Path, finder_model: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (128, 64, 3), dtype=np.uint8)
    for detector in (finder_model, everybody, PersonFinder(finder_model)):
        pose = PoseEstimator(pose_model, detector=detector, batch_size=1, threads=1)
        again = pickle.loads(pickle.dumps(pose))
        np.testing.assert_array_equal(again.predict(image).xy, pose.predict(image).xy)
        assert again.info == pose.info
    pose = PoseEstimator(pose_model, detector=lambda image: [])
    with pytest.raises(InputError, match="can be pickled"):
        pickle.dumps(pose)
    pose.close()
    with pytest.raises(BackendError, match="is closed"):
        pickle.dumps(pose)


def test_a_closed_estimator_says_so(
    pose_model: Path, finder_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfpose_sdk.detectors.base.BUNDLED_FINDER", finder_model)
    with PoseEstimator(pose_model) as pose:
        pass
    image = np.zeros((90, 120, 3), np.uint8)
    calls: list[Any] = [
        lambda: pose.predict(image),
        lambda: pose.predict(image, boxes=[]),
        lambda: pose.predict_batch([image]),
        lambda: pose.stream([image]),
    ]
    for call in calls:
        with pytest.raises(BackendError, match=r"PoseEstimator \(brightest.onnx\) is closed"):
            call()
    pose.close()


def test_a_finder_that_does_not_open_leaves_no_model_open(
    pose_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[OnnxBackend] = []
    close = OnnxBackend.close
    monkeypatch.setattr(OnnxBackend, "close", lambda self: (closed.append(self), close(self))[1])
    with pytest.raises(ArtifactError):
        PoseEstimator(pose_model, detector=tmp_path / "gone.onnx")
    assert [backend.path for backend in closed] == [pose_model]


def test_eight_threads_give_exactly_what_one_gives(pose_model: Path, finder_model: Path) -> None:
    rng = np.random.default_rng(11)
    sizes = rng.integers(30, 200, (25, 2))
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes]
    with PoseEstimator(pose_model, detector=finder_model, threads=1) as pose:
        expected = [pose.predict(image) for image in images]

        def work(start: int) -> list[tuple[int, Poses]]:
            order = [(start + n) % len(images) for n in range(len(images))]
            return [(n, pose.predict(images[n])) for n in order]

        with ThreadPoolExecutor(8) as pool:
            for results in pool.map(work, range(0, 24, 3)):
                assert len(results) == 25
                for n, poses in results:
                    for name in ("xy", "confidence", "boxes", "box_scores"):
                        np.testing.assert_array_equal(
                            getattr(poses, name), getattr(expected[n], name)
                        )


@pytest.mark.parametrize("every", [1, 3, 100])
def test_people_are_looked_for_in_every_nth_frame(
    pose_model: Path, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    given_boxes: list[np.ndarray] = []

    def detector(image: np.ndarray) -> list[list[float]]:
        looked.append(int(image[0, 0, 0]))
        return [[10, 10, 50, 70]]

    def carried(poses: Poses) -> Detections:
        given_boxes.append(poses.boxes)
        return Detections(poses.boxes + 1, poses.box_scores)

    monkeypatch.setattr("cfpose_sdk.streaming.stream.carried_boxes", carried)
    frames = [np.full((90, 80, 3), n, np.uint8) for n in range(8)]
    pose = PoseEstimator(pose_model, detector=detector)
    results = list(pose.stream(frames, detect_every=every))
    assert looked == list(range(0, 8, every))
    for n, poses in enumerate(results):
        np.testing.assert_array_equal(poses.boxes, [np.array([10, 10, 50, 70]) + n % every])
    assert len(given_boxes) == 8 - len(looked)


def test_an_estimator_shows_what_it_is(pose_model: Path, finder_model: Path) -> None:
    with PoseEstimator(pose_model, detector=finder_model, device="cpu") as pose:
        assert repr(pose) == (
            "PoseEstimator(brightest: 17 joints, crops of 48x64, CPUExecutionProvider; "
            "detector: constant (two.onnx, CPUExecutionProvider))"
        )
    assert repr(pose).endswith(", closed)")


def test_a_finder_leaves_a_backend_of_the_caller_open(finder_model: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    with open_backend(finder_model, device="cpu") as backend:
        with PersonFinder(backend) as finder:
            assert finder.path == finder_model
            assert len(finder(image)) == 2
        backend.run({"images": image[None]})
    with PersonFinder(finder_model, device="cpu") as own:
        pass
    with pytest.raises(BackendError):
        own(image)
