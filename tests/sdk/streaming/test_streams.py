"""Streams: order, bounded memory, threads that end, sequences, damaged files."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk.errors import BackendError, ImageError, InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.media.frames import Unread
from cfpose_sdk.media.sources import open_video
from cfpose_sdk.results import Poses
from cfpose_sdk.streaming.prefetch import Prefetcher
from cfpose_sdk.streaming.smoothing import SmoothOptions
from cfpose_sdk.streaming.tracking import TrackOptions

FRAMES = 24
BOX = [[2.0, 2.0, 30.0, 40.0]]


def picture(level: int) -> np.ndarray:
    return np.full((48, 64, 3), level, np.uint8)


def level(image: np.ndarray | None) -> int:
    assert image is not None
    return round(float(image.mean()))


def write_clip(path: Path, frames: int = FRAMES) -> Path:
    kind = "MJPG" if path.suffix == ".avi" else "mp4v"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*kind), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write videos")
    for number in range(frames):
        writer.write(picture(10 * number + 5))
    writer.release()
    return path


def ids(poses: Poses) -> list[int]:
    assert poses.ids is not None
    return [int(number) for number in poses.ids]


def threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("cfpose-")}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    assert threads() == set()
    yield
    gc.collect()
    assert threads() == set()


@pytest.fixture(scope="module")
def pose(pose_model: Path) -> PoseEstimator:
    return PoseEstimator(pose_model, detector=lambda image: BOX, threads=1)


@pytest.mark.parametrize("prefetch", [None, 0, 1, 7])
@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_frames_keep_their_order_number_and_time(
    pose: PoseEstimator, tmp_path: Path, suffix: str, prefetch: int | None
) -> None:
    clip = write_clip(tmp_path / f"clip{suffix}")
    results = list(pose.stream(clip, prefetch=prefetch))
    assert [poses.frame for poses in results] == list(range(FRAMES))
    assert [poses.source for poses in results[:2]] == ["clip-000000", "clip-000001"]
    np.testing.assert_allclose([poses.time_s for poses in results], np.arange(FRAMES) / 10)
    np.testing.assert_allclose(
        [level(poses.image) for poses in results], 10 * np.arange(FRAMES) + 5, atol=4.9
    )
    assert all(len(poses) == 1 and poses.speed_ms["read"] > 0 for poses in results)


def test_threads_change_nothing(pose_model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    sizes = rng.integers(20, 90, (12, 2))
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes]

    def half(image: np.ndarray) -> list[list[float]]:
        h, w = image.shape[:2]
        return [[0, 0, w / 2, h], [w / 2, 0, w, h]]

    with PoseEstimator(pose_model, detector=half) as estimator:
        expected = [estimator.predict(image) for image in images]
        streamed = list(estimator.stream(images, prefetch=3))
    for one, other in zip(expected, streamed, strict=True):
        np.testing.assert_array_equal(one.xy, other.xy)
        np.testing.assert_array_equal(one.boxes, other.boxes)


@pytest.mark.parametrize("prefetch", [1, 3])
def test_memory_is_bounded(pose: PoseEstimator, prefetch: int) -> None:
    made = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal made
        while True:
            made += 1
            yield picture(made % 250)

    with pose.stream(endless(), prefetch=prefetch) as stream:
        for taken in range(1, 30):
            next(stream)
            time.sleep(0.002)  # time for the threads to run as far as they may
            # one in each queue's places, and one in the hands of each of the two threads
            assert made - taken <= 2 * prefetch + 2
    assert threads() == set()


def test_a_stream_that_is_dropped_ends(pose: PoseEstimator, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi")
    for _ in pose.stream(clip):
        break
    gc.collect()
    assert threads() == set()
    stream = pose.stream(clip)  # never started: no thread, and the file is let go
    assert threads() == set()
    stream.close()
    stream.close()
    assert list(stream) == []


def test_what_a_thread_raises_travels(pose_model: Path) -> None:
    def source() -> Iterator[np.ndarray]:
        yield picture(1)
        raise ZeroDivisionError("in the source")

    def blind(image: np.ndarray) -> object:
        if level(image) == 3:
            raise RuntimeError("in the detector")
        return BOX

    estimator = PoseEstimator(pose_model, detector=blind)
    for prefetch in (0, 2):
        stream = estimator.stream(source(), prefetch=prefetch)
        assert len(next(stream)) == 1
        with pytest.raises(ZeroDivisionError, match="in the source"):
            next(stream)
        stream = estimator.stream([picture(2), picture(3), picture(4)], prefetch=prefetch)
        assert len(next(stream)) == 1
        with pytest.raises(RuntimeError, match="in the detector"):
            next(stream)
        assert list(stream) == []
        assert threads() == set()


def test_an_interrupt_leaves_no_thread(pose: PoseEstimator, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi")

    def watch() -> None:
        for poses in pose.stream(clip):
            if poses.frame == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch()
    gc.collect()
    assert threads() == set()


def test_a_callers_generator_stays_in_the_callers_thread(pose: PoseEstimator) -> None:
    seen: set[int] = set()

    def source() -> Iterator[np.ndarray]:
        for n in range(3):
            seen.add(threading.get_ident())
            yield picture(n)

    assert len(list(pose.stream(source()))) == 3
    assert seen == {threading.get_ident()}
    assert len(list(pose.stream(source(), prefetch=1))) == 3
    assert len(seen) == 2


def test_a_truncated_video_gives_what_it_has_and_says_so(
    pose: PoseEstimator, tmp_path: Path
) -> None:
    whole = write_clip(tmp_path / "whole.avi").read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole[: int(len(whole) * 0.75)])
    with pytest.warns(RuntimeWarning, match=r"announces 24 frames and ends after \d+") as caught:
        results = list(pose.stream(cut))
    assert len(caught) == 1
    assert 5 < len(results) < FRAMES - 2
    with pytest.raises(InputError, match="is cut off"):
        list(pose.stream(cut, broken="raise"))
    headless = tmp_path / "cut.mp4"  # its index stands at the end
    headless.write_bytes(write_clip(tmp_path / "whole.mp4").read_bytes()[:-200])
    with pytest.raises(InputError, match="cannot be opened"):
        pose.stream(headless)


class VariableRate:
    """A capture of 10 s that announces 30 frames a second and has them at `stamps_ms` only."""

    def __init__(self, stamps_ms: list[float]) -> None:
        self.stamps_ms, self.at = stamps_ms, -1

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def get(self, what: int) -> float:
        if what == cv2.CAP_PROP_POS_MSEC:
            return self.stamps_ms[self.at]
        return {cv2.CAP_PROP_FRAME_COUNT: 300.0, cv2.CAP_PROP_FPS: 30.0}[what]

    def read(self) -> tuple[bool, np.ndarray | None]:
        if self.at + 1 >= len(self.stamps_ms):
            return False, None
        self.at += 1
        return True, picture(5)

    def release(self) -> None: ...


@pytest.mark.parametrize(
    ("stamps_ms", "cut"),
    [
        ([*range(0, 5000, 50), *range(5000, 10000, 200)], False),
        ([*range(0, 10000, 1000)], False),  # the last frame stays for a second as the others do
        ([*range(0, 5000, 50), *range(5000, 9000, 200)], True),
        ([*range(0, 5000, 50)], True),
    ],
)
def test_a_variable_frame_rate_is_no_cut(
    stamps_ms: list[float], cut: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clip.mkv").touch()
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: VariableRate(stamps_ms))
    items = list(open_video(tmp_path / "clip.mkv").items)
    if cut:
        last = items.pop()
        assert isinstance(last, Unread)
        assert "is cut off" in str(last.error)
    for item, stamp_ms in zip(items, stamps_ms, strict=True):
        assert not isinstance(item, Unread)
        assert item.time_s == stamp_ms / 1000


def test_a_damaged_frame_in_the_middle_is_one_warning(pose: PoseEstimator, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi")
    data = bytearray(clip.read_bytes())
    chunks = [at for at in range(len(data) - 4) if data[at : at + 4] == b"00dc"]
    data[chunks[10] + 8 : chunks[11] - 8] = bytes(chunks[11] - chunks[10] - 16)
    clip.write_bytes(data)
    with pytest.warns(RuntimeWarning, match="is damaged") as caught:
        results = list(pose.stream(clip))
    assert len(caught) == 1
    levels = [level(poses.image) for poses in results]
    assert len(levels) >= FRAMES - 3  # OpenCV's decoder may take a neighbour along
    assert levels == sorted(levels)
    assert levels[-1] >= 10 * (FRAMES - 2)  # it went on to the end


def test_broken_photos_among_good_ones(pose: PoseEstimator, tmp_path: Path) -> None:
    for name in ("a.png", "c.jpg", "e.png"):
        cv2.imwrite(str(tmp_path / name), picture(90))
    (tmp_path / "b.png").write_bytes(b"no photo")
    whole = (tmp_path / "c.jpg").read_bytes()
    (tmp_path / "d.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(RuntimeWarning, match=r"b\.png|d\.jpg") as caught:
        results = list(pose.stream(tmp_path))
    assert [poses.source for poses in results] == ["a.png", "c.jpg", "e.png"]
    assert len(caught) == 2
    assert caught[0].filename == __file__  # the warning points at the caller's line
    with pytest.raises(ImageError, match=r"b\.png"):
        list(pose.stream(tmp_path, broken="raise"))
    mixed: list[Any] = [picture(5), tmp_path / "absent.png", str(tmp_path / "a.png")]
    with pytest.warns(RuntimeWarning, match="does not exist"):
        assert len(list(pose.stream(mixed))) == 2
    with pytest.raises(ImageError, match="uint8"):  # a mistake in a program is no damaged file
        list(pose.stream([picture(5).astype(float)]))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_nothing_passes_from_one_source_to_the_next(
    pose_model: Path, tmp_path: Path, prefetch: int
) -> None:
    for name in ("a.avi", "b.avi"):
        write_clip(tmp_path / name, frames=5)
    searched: list[int] = []

    def detector(image: np.ndarray) -> list[list[float]]:
        searched.append(level(image) // 10)
        return BOX

    with PoseEstimator(pose_model, detector=detector) as estimator:
        results = list(
            estimator.stream(
                str(tmp_path / "[ab].avi"),
                prefetch=prefetch,
                detect_every=3,
                track=TrackOptions(min_similarity=1e-9),
                smooth=SmoothOptions(min_cutoff_hz=1e-9, beta=0.0),
            )
        )
    assert searched == [0, 3, 0, 3]
    firsts = [poses for poses in results if poses.frame == 0]
    assert [poses.source for poses in firsts] == ["a-000000", "b-000000"]
    for poses in firsts:
        np.testing.assert_array_equal(poses.boxes, BOX)
        np.testing.assert_array_equal(poses.xy, poses.xy_raw)
    first, second = (
        [n for poses in clip for n in ids(poses)] for clip in (results[:5], results[5:])
    )
    assert max(first) < min(second)


def test_photos_of_one_size_are_a_sequence_and_arrays_too(pose_model: Path, tmp_path: Path) -> None:
    for name, columns in (("a.png", 0), ("b.png", 0), ("c.png", 2), ("d.png", 3)):
        cv2.imwrite(str(tmp_path / name), np.pad(picture(90), ((0, 0), (0, columns), (0, 0))))
    searched: list[int] = []

    def detector(image: np.ndarray) -> list[list[float]]:
        searched.append(image.shape[1])
        return BOX

    photos: list[Any] = sorted(tmp_path.iterdir())
    arrays = [picture(100), picture(110), picture(120)]
    with PoseEstimator(pose_model, detector=detector, threads=1) as estimator:
        results = list(estimator.stream([*photos, *arrays], detect_every=2, track=True))
    width = arrays[0].shape[1]
    assert searched == [width, width + 2, width + 3, width, width]
    assert [ids(results[n]) for n in (0, 2, 3, 4, 6)] == [[1], [2], [3], [4], [4]]


def test_bad_options(pose: PoseEstimator) -> None:
    for options in ({"prefetch": -1}, {"detect_every": 0}, {"broken": "ignore"}):
        with pytest.raises(InputError, match=next(iter(options))):
            pose.stream([picture(1)], **options)  # type: ignore[arg-type]


def test_a_closed_estimator_streams_nothing(pose_model: Path) -> None:
    estimator = PoseEstimator(pose_model, detector=lambda image: BOX)
    stream = estimator.stream([picture(1)] * 3)
    next(stream)
    estimator.close()
    with pytest.raises(BackendError, match="is closed"):
        list(stream)
    with pytest.raises(BackendError, match="is closed"):
        estimator.stream([picture(1)])


def test_ahead_of_an_empty_iterator() -> None:
    ahead: Prefetcher[int] = Prefetcher(iter(()), 2, "cfpose-test")
    assert list(ahead) == []
    ahead.close()


def test_the_real_clip(shared_dir: Path) -> None:
    clip = shared_dir / "data" / "shippable" / "pedestrians.mp4"
    if not clip.is_file():
        pytest.skip("pedestrians.mp4 is not there")
    footage = open_video(clip)
    numbers, times = [], []
    for item in footage.items:
        assert not isinstance(item, Unread)
        assert item.image.shape == (576, 768, 3)
        numbers.append(item.number)
        times.append(item.time_s)
    assert (footage.fps, footage.count, footage.live) == (10.0, 80, False)
    assert numbers == list(range(80))
    np.testing.assert_allclose(times, np.arange(80) / 10, atol=1e-6)
