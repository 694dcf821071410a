"""Frames of files that share a run of the pose network: the same answers, order and complaints."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk import PoseEstimator, Poses
from cfpose_sdk.errors import ImageError, InputError
from cfpose_sdk.media.frames import Footage, Frame, Unread
from cfpose_sdk.media.sources import open_source
from cfpose_sdk.streaming.stream import PoseStream, StreamOptions

PHOTOS = 11


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of two sizes; the third and the last are no photos."""
    chance = np.random.default_rng(2)
    for n in range(PHOTOS):
        shape = (60, 80, 3) if n < 6 else (50, 40, 3)
        cv2.imwrite(str(tmp_path / f"{n:02d}.png"), chance.integers(0, 256, shape, dtype=np.uint8))
    for n in (2, PHOTOS - 1):
        (tmp_path / f"{n:02d}.png").write_bytes(b"no photo")
    return tmp_path


def people(image: np.ndarray) -> list[list[float]]:
    """Nobody, one or two people, by the image."""
    h, w = image.shape[:2]
    return [[0, 0, w / 2, h], [w / 3, 1, w, h]][: int(image[0, 0, 0]) % 3]


def told(estimator: PoseEstimator, photos: Path, **options: Any) -> list[Poses | str]:
    """Poses and complaints in the order in which they come."""
    events: list[Poses | str] = []
    footage, chosen = open_source(photos), StreamOptions(**options)
    with estimator.open_stream(footage, chosen, lambda e: events.append(str(e))) as stream:
        for poses in stream:
            events.append(poses)
    return events


def check_same(one: Sequence[Poses | str], other: Sequence[Poses | str]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        if isinstance(a, str) or isinstance(b, str):
            assert a == b
            continue
        assert a.source == b.source
        np.testing.assert_array_equal(a.boxes, b.boxes)
        # the runtime may add up in another order
        np.testing.assert_allclose(a.xy, b.xy, atol=1e-3)
        np.testing.assert_allclose(a.confidence, b.confidence, atol=1e-5)
        assert (a.ids is None) == (b.ids is None)
        if a.ids is not None and b.ids is not None:
            np.testing.assert_array_equal(a.ids, b.ids)


@pytest.mark.parametrize("batch_frames", [2, 4, 50])
@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("options", [{}, {"track": True}, {"detect_every": 3, "track": True}])
def test_the_same_as_one_by_one(
    pose_model: Path, photos: Path, batch_frames: int, prefetch: int, options: dict[str, Any]
) -> None:
    with PoseEstimator(pose_model, detector=people, batch_size=3, threads=1) as estimator:
        expected = told(estimator, photos, **options)
        got = told(estimator, photos, batch_frames=batch_frames, prefetch=prefetch, **options)
    assert [n for n, event in enumerate(expected) if isinstance(event, str)] == [2, PHOTOS - 1]
    check_same(expected, got)


class Recorder:
    """An engine that notes how many frames come together; `bad` ones cannot be posed."""

    def __init__(self, estimator: PoseEstimator, bad: Sequence[str | None] = ()) -> None:
        self._estimator, self._bad = estimator, bad
        self.detect = estimator._detector
        self.sizes: list[int] = []

    def poses(self, frames: Sequence[Frame], people: Sequence[Any]) -> Sequence[Poses]:
        self.sizes.append(len(frames))
        if any(frame.name in self._bad for frame in frames):
            raise ImageError("too long a crop")
        return self._estimator._estimate(frames, people)


@pytest.fixture
def estimator(pose_model: Path) -> Iterator[PoseEstimator]:
    with PoseEstimator(pose_model, detector=people, threads=1) as opened:
        yield opened


def test_groups_are_full_and_the_rest_follows(estimator: PoseEstimator, photos: Path) -> None:
    engine = Recorder(estimator)
    options = StreamOptions(batch_frames=4)
    with pytest.warns(RuntimeWarning, match="skipped"):
        assert len(list(PoseStream(engine, open_source(photos), options))) == PHOTOS - 2
    assert engine.sizes == [3, 4, 2]  # what cannot be read has a place in a group


def test_a_live_source_never_waits(estimator: PoseEstimator, photos: Path) -> None:
    engine = Recorder(estimator)
    footage = replace(open_source(photos / "00.png"), live=True)
    list(PoseStream(engine, footage, StreamOptions(batch_frames=4)))
    several = iter(list(open_source([photos / "00.png", photos / "01.png"]).items))
    live = Footage(several, lambda: None, live=True)
    assert len(list(PoseStream(engine, live, StreamOptions(batch_frames=4)))) == 2
    assert engine.sizes == [1, 1, 1]


def test_large_frames_do_not_wait(estimator: PoseEstimator) -> None:
    engine = Recorder(estimator)
    frames = [np.zeros((3000, 3000, 3), np.uint8)] * 3
    list(PoseStream(engine, open_source(frames), StreamOptions(batch_frames=8)))
    assert engine.sizes == [2, 1]


def test_one_that_cannot_be_posed_stops_no_other(estimator: PoseEstimator, photos: Path) -> None:
    expected = told(estimator, photos)
    complaints: list[InputError] = []
    engine = Recorder(estimator, bad=("04.png",))
    stream = PoseStream(
        engine, open_source(photos), StreamOptions(batch_frames=8), complaints.append
    )
    names = [poses.source for poses in stream]
    assert names == [e.source for e in expected if isinstance(e, Poses) and e.source != "04.png"]
    assert [str(e) for e in complaints][1] == "too long a crop"


def test_frames_before_an_error_come_first(pose_model: Path) -> None:
    def blind(image: np.ndarray) -> object:
        if image[0, 0, 0] == 3:
            raise RuntimeError("in the detector")
        return []

    frames = [np.full((20, 20, 3), n, np.uint8) for n in range(6)]
    with PoseEstimator(pose_model, detector=blind) as estimator:
        for prefetch in (0, 2):
            stream = estimator.stream(frames, prefetch=prefetch, batch_frames=5)
            assert [len(next(stream)) for _ in range(3)] == [0, 0, 0]
            with pytest.raises(RuntimeError, match="in the detector"):
                next(stream)


def test_frames_are_let_go_as_they_are_read(estimator: PoseEstimator) -> None:
    alive: list[Any] = []

    def source() -> Iterator[Frame | Unread]:
        for n in range(20):
            image = np.full((30, 30, 3), n, np.uint8)
            alive.append(weakref.ref(image))
            yield Frame(image, None, 0.0)

    footage = Footage(source(), lambda: None, own=False)
    with PoseStream(Recorder(estimator), footage, StreamOptions(batch_frames=4)) as stream:
        for n, poses in enumerate(stream):
            del poses
            held = sum(each() is not None for each in alive)
            assert held <= 4 - n % 4, f"after frame {n}"


def test_batch_frames_must_be_positive(estimator: PoseEstimator) -> None:
    with pytest.raises(InputError, match="batch_frames must be 1 or more, got 0"):
        estimator.stream([np.zeros((9, 9, 3), np.uint8)], batch_frames=0)
