"""A pose engine and its finder on strict fake GPUs, against the same graphs on the CPU."""

from __future__ import annotations

import dataclasses
import functools
import random
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.backends import RuntimeOptions
from cfpose_sdk.backends.tensorrt.passport import Companion, passport_path
from cfpose_sdk.detectors import DetectorOptions
from cfpose_sdk.errors import ArtifactError, InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.results import Poses

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")


def _same(got: Poses, expected: Poses) -> None:
    for name in ("xy", "confidence", "boxes", "box_scores"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


def _picture(rng: random.Random) -> np.ndarray:
    size = (rng.randint(32, 90), rng.randint(32, 90), 3)
    bright = rng.choice([40, 140, 256])
    return np.random.default_rng(rng.random().__hash__() % 2**32).integers(
        0, bright, size, np.uint8
    )


def _frames(gpu: Any) -> list[int]:
    """Bytes of the uploads that are larger than any list of boxes."""
    return [size for way, size in gpu.copied if way == "up" and size >= 32 * 32 * 3]


def test_the_finder_beside_an_engine_is_used(
    gpu: Any, pair: Callable[..., Path], graphs: Mapping[str, Path]
) -> None:
    engine = pair()
    image = np.full((60, 80, 3), 200, np.uint8)
    image[20:30, 20:30] = 255
    options = DetectorOptions(threshold=0.3, nms_iou=1.0)
    with (
        warnings.catch_warnings(action="error"),
        PoseEstimator(engine, detector_options=options) as estimator,
        PoseEstimator(
            graphs["pose"], detector=graphs["finder"], detector_options=options, device="cpu"
        ) as plain,
    ):
        assert "(tiny.finder.engine, TensorRT-RTX" in estimator.info.detector
        poses = estimator.predict(image)
        assert len(poses) > 32  # more than one run takes
        _same(poses, plain.predict(image))
        assert _frames(gpu) == [image.nbytes]
    assert gpu.alive == {}


def test_without_one_it_says_that_people_are_found_on_the_cpu(
    gpu: Any, pair: Callable[..., Path], finder_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfpose_sdk.detectors.base.BUNDLED_FINDER", finder_model)
    monkeypatch.setattr("cfpose_sdk.detectors.lazy.BUNDLED_FINDER", finder_model)
    engine = pair(along=False)
    image = np.full((60, 80, 3), 200, np.uint8)
    with PoseEstimator(engine, device="cuda") as estimator:
        assert "tiny.engine was built without a finder" in estimator.info.detector
        with warnings.catch_warnings(action="error"):
            estimator.predict(image, boxes=[[1, 1, 9, 9]])  # finds nobody itself
        with pytest.warns(RuntimeWarning, match="found on the CPU: tiny.engine was built without"):
            assert len(estimator.predict(image)) == 2
        with warnings.catch_warnings(action="error"):
            estimator.predict(image)
        assert "built without a finder" in estimator.info.detector
        assert "CPUExecutionProvider" in estimator.info.detector


def test_a_pair_that_does_not_belong_together(gpu: Any, pair: Callable[..., Path]) -> None:
    engine = pair()
    with pytest.raises(InputError, match="cannot be chosen for the finder of an engine"):
        PoseEstimator(engine, detector_options=DetectorOptions(layout="yolox"))
    assert gpu.alive == {}
    finder = engine.with_name("tiny.finder.engine")
    text = passport_path(finder).read_text()
    passport_path(finder).write_text(text.replace('"key": "finder"', '"key": "other"'))
    with pytest.raises(ArtifactError, match="is not the finder that"):
        PoseEstimator(engine)
    finder.unlink()
    with pytest.raises(ArtifactError, match="which is not there"):
        PoseEstimator(engine)


@pytest.mark.parametrize("shape", [(3, 80, 3), (60, 20, 3), (1, 1, 3), (400, 33, 3)])
def test_small_and_narrow_frames(
    gpu: Any, pair: Callable[..., Path], shape: tuple[int, int, int]
) -> None:
    """Below the profile a frame gets a black border."""
    image = np.full(shape, 255, np.uint8)
    options = DetectorOptions(threshold=0.0, nms_iou=1.0)
    with PoseEstimator(pair(), detector_options=options) as estimator:
        poses = estimator.predict(image)
        assert len(poses) > 0 or shape[:2] == (1, 1)
        assert len(estimator.predict(image, boxes=[[0, 0, 1, 1]])) == 1
        assert (poses.boxes <= [shape[1], shape[0], shape[1], shape[0]]).all()


def test_streams_hold_frames_for_the_length_of_their_way(
    gpu: Any, pair: Callable[..., Path]
) -> None:
    rng = random.Random(5)
    images = [_picture(rng) for _ in range(12)]
    options = DetectorOptions(threshold=0.2)
    with PoseEstimator(pair(), detector_options=options) as estimator:
        expected = [estimator.predict(image) for image in images]
        gpu.copied.clear()
        with estimator.stream(images, prefetch=2) as stream:
            for got, wanted in zip(stream, expected, strict=True):
                _same(got, wanted)
        # nobody in a picture: the pose engine has nothing to run, the finder had the frame
        assert _frames(gpu) == [image.nbytes for image in images]
        stream = estimator.stream(images, prefetch=2)
        next(stream)
        del stream  # half-way
    assert gpu.alive == {}


CALLS = 80  # as many as a test may last; 1,000 ran as well


def test_random_calls_give_what_the_cpu_gives(
    gpu: Any, pair: Callable[..., Path], graphs: Mapping[str, Path], fake_arrays: ModuleType
) -> None:
    """0 to 70 people, changing sizes, two devices, four threads, streams dropped half-way, frames
    on the host and on the GPU.
    """
    gpu.devices, engine, wrong = 2, pair(), list[BaseException]()
    options = DetectorOptions(threshold=0.3, nms_iou=1.0)
    shared: dict[str, Any] = {"detector_options": options}
    plain = PoseEstimator(
        graphs["pose"], detector=graphs["finder"], device="cpu", threads=1, **shared
    )
    estimators = [
        PoseEstimator(engine, device=f"cuda:{n}", options=RuntimeOptions(workers=1 + n), **shared)
        for n in range(2)
    ]
    counts = [0, 0, 0]  # people, frames, streams

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            gpu.set_current(seed % 2)
            for _ in range(CALLS // 4):
                device = rng.randrange(2)
                arrays = functools.partial(_anywhere, gpu, fake_arrays, rng, device)
                _one_call(rng, estimators[device], plain, counts, arrays)
                assert gpu.current == seed % 2
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert gpu.violations == []
    assert counts[0] > CALLS
    assert counts[2] > 0
    for estimator in estimators:
        estimator.close()
    assert gpu.alive == {}


def _anywhere(
    gpu: Any, fake_arrays: ModuleType, rng: random.Random, device: int, image: np.ndarray
) -> Any:
    """The image on the host, or on the GPU as an array of another library."""
    kind = rng.choice([None, None, *fake_arrays.KINDS])
    if kind is None:
        return image
    return fake_arrays.KINDS[kind](fake_arrays.Memory(gpu, image, device))


def _one_call(
    rng: random.Random, estimator: PoseEstimator, plain: PoseEstimator, counts: list[int],
    anywhere: Callable[[np.ndarray], Any],
) -> None:  # fmt: skip
    image = _picture(rng)
    kind = rng.random()
    if kind < 0.04:
        images = [_picture(rng) for _ in range(3)]
        stream = estimator.stream([anywhere(picture) for picture in images], prefetch=1)
        for picture in images[: rng.randrange(4)]:
            _same(next(stream), plain.predict(picture))
        del stream
        counts[2] += 1
        return
    if kind < 0.5:
        _same(estimator.predict(anywhere(image)), wanted := plain.predict(image))
    else:
        corners = np.random.default_rng(rng.randrange(1 << 30)).uniform(
            0, 30, (rng.randint(0, 70), 2)
        )
        boxes = np.concatenate([corners, corners + 12], axis=1)
        wanted = plain.predict(image, boxes=boxes)
        _same(estimator.predict(anywhere(image), boxes=boxes), wanted)
    counts[0] += len(wanted)
    counts[1] += 1


def test_the_passports_know_each_other(pair: Callable[..., Path]) -> None:
    from cfpose_sdk.backends.tensorrt.passport import read_passport

    engine = pair()
    pose = read_passport(engine)
    finder = read_passport(engine.with_name("tiny.finder.engine"))
    assert pose.companion == Companion("finder", "tiny.finder.engine", finder.key)
    assert finder.companion == Companion("pose", "tiny.engine", pose.key)
    assert dataclasses.replace(pose, companion=None).companion is None
