"""Cameras that are lost and come back: frames go on, ids end, and every gap is said."""

from __future__ import annotations

import http.server
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfpose_sdk.errors import InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.media import reconnect
from cfpose_sdk.media.frames import Footage, Frame, Item, Unread
from cfpose_sdk.media.reconnect import reconnecting
from cfpose_sdk.media.sources import open_video
from cfpose_sdk.streaming.stream import PoseStream

LOST = Unread(InputError("camera 0 ended or was lost after 2 frames; open it again"))


def footage(closed: list[str], *, side: int = 4, frames: int = 2) -> Footage:
    def items() -> Iterator[Item]:
        for n in range(frames):
            yield Frame(np.zeros((side, 4, 3), np.uint8), f"camera-0-{n:06d}", 1.0, n, 0.1 * n)
        yield LOST

    return Footage(items(), lambda: closed.append("closed"), fps=25.0, live=True)


def opener(*lives: Callable[[], Footage] | None) -> Callable[[], Footage]:
    """Opens one after the other; None, and what comes after the last, is nobody there."""
    left = iter(lives)

    def open_again() -> Footage:
        life = next(left, None)
        if life is None:
            raise InputError("camera 0 cannot be opened as a video")
        return life()

    return open_again


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between two tries; the clock here goes on by them, and a bit at each look."""
    now, taken = [100.0], []

    def sleep(seconds: float) -> None:
        taken.append(seconds)
        now[0] += seconds

    def monotonic() -> float:
        now[0] += 1e-4
        return now[0]

    monkeypatch.setattr(reconnect, "time", types.SimpleNamespace(sleep=sleep, monotonic=monotonic))
    return taken


def test_frames_go_on_and_every_gap_is_said(pauses: list[float]) -> None:
    closed: list[str] = []
    again = opener(None, lambda: footage(closed), lambda: footage(closed))
    whole = reconnecting(footage(closed), again, "camera 0", 0.9)
    with pytest.warns(RuntimeWarning, match="was lost after . frames and is there again") as said:
        *frames, end = whole.items
    assert len(said) == 2
    assert [frame.name for frame in frames] == [f"camera-0-{n:06d}" for n in range(6)]
    assert [frame.number for frame in frames] == list(range(6))
    assert [frame.take for frame in frames] == [0, 0, 1, 1, 2, 2]
    times = [frame.time_s for frame in frames]
    assert times == sorted(times)
    assert "lost after 6 frames, and did not answer again within 0.9 s" in str(end.error)
    assert len(closed) >= 3
    assert pauses == pytest.approx([0.25, 0.5, 0.25, 0.25, 0.5, 0.15], abs=0.01)


def test_pauses_grow_to_two_seconds_and_end_in_time(pauses: list[float]) -> None:
    whole = reconnecting(footage([]), opener(), "camera 0", 10.0)
    *_, end = whole.items
    assert "did not answer again within 10 s" in str(end.error)
    assert pauses == pytest.approx([0.25, 0.5, 1, 2, 2, 2, 2, 0.25], abs=0.01)


def test_another_size_ends_it() -> None:
    again = opener(lambda: footage([], side=8))
    whole = reconnecting(footage([]), again, "camera 0", 5.0)
    with pytest.warns(RuntimeWarning, match="there again"):
        *frames, end = whole.items
    assert len(frames) == 2
    assert "came back with another frame size" in str(end.error)


def test_what_never_started_is_closed() -> None:
    closed: list[str] = []
    reconnecting(footage(closed), opener(), "camera 0", 1.0).close()
    assert closed


class Camera:
    """An MJPEG camera over HTTP; each life sends 40 pictures to one caller and is killed."""

    def __init__(self) -> None:
        self.lives = 0
        self._port = 0
        self._start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}/live"

    def _start(self) -> None:
        camera = self
        jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 120, np.uint8))[1].tobytes()

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n"
                for _ in range(40):
                    self.wfile.write(head.encode() + b"\r\n" + jpeg + b"\r\n")
                self.wfile.flush()
                threading.Thread(target=camera.kill, daemon=True).start()

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self._port), Answer)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def kill(self) -> None:
        """End this life; of three lives the next begins after a while."""
        self.lives += 1
        self.close()
        if self.lives < 3:
            time.sleep(0.4)
            self._start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _follow_to_the_third(stream: PoseStream, ids: list[int], numbers: list[int | None]) -> None:
    for poses in stream:
        ids += poses.ids.tolist()
        numbers.append(poses.frame)
        if ids[-1] == 3:
            return


def test_a_stream_that_is_killed_twice(pose_model: Path) -> None:
    camera = Camera()
    try:
        open_video(camera.address, timeout_s=2.0).close()
    except InputError:
        pytest.skip("this OpenCV reads no HTTP streams")
    finally:
        camera.close()
    camera = Camera()
    model = PoseEstimator(pose_model, detector=lambda image: [[2.0, 2.0, 30.0, 40.0]], threads=1)
    ids: list[int] = []
    numbers: list[int | None] = []
    stream = model.stream(camera.address, track=True, reconnect_s=20.0)
    with pytest.warns(RuntimeWarning, match="there again after") as said:
        _follow_to_the_third(stream, ids, numbers)
    stream.close()
    assert len(said) == 2
    assert numbers == list(range(len(numbers)))
    assert sorted(set(ids)) == [1, 2, 3]
    camera.close()


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_seconds_have_a_range(pose_model: Path, wrong: float) -> None:
    with pytest.raises(InputError, match="reconnect_s must be 0 seconds or more"):
        PoseEstimator(pose_model, threads=1).stream("http://127.0.0.1:9/x", reconnect_s=wrong)
