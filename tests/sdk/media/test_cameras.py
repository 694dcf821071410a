"""Cameras over HTTP: those that fall silent, end, or are not there."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfpose_sdk.errors import InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.media.frames import Unread
from cfpose_sdk.media.sources import open_video


@pytest.fixture(scope="module")
def pose(pose_model: Path) -> PoseEstimator:
    return PoseEstimator(pose_model, detector=lambda image: [[2.0, 2.0, 30.0, 40.0]], threads=1)


@pytest.fixture
def camera() -> Iterator[str]:
    """An MJPEG camera over HTTP that sends 12 pictures and then falls silent."""
    over = threading.Event()
    jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 120, np.uint8))[1].tobytes()

    class Camera(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for _ in range(12):
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")
            self.wfile.flush()
            if self.path != "/ends":
                over.wait(20)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}"
    over.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("end", ["ends", "stalls"])
def test_a_lost_stream_is_a_clear_end(camera: str, end: str) -> None:
    try:
        footage = open_video(f"{camera}/{end}", timeout_s=1.0)
    except InputError:
        pytest.skip("this OpenCV reads no HTTP streams")
    assert footage.live
    items = list(footage.items)
    last = items.pop()
    assert isinstance(last, Unread)
    assert "ended or was lost" in str(last.error)
    assert 1 <= len(items) <= 12
    assert not any(isinstance(item, Unread) for item in items)
    footage.close()


def test_a_cut_stream_gives_its_poses_and_one_warning(camera: str, pose: PoseEstimator) -> None:
    try:
        open_video(f"{camera}/ends", timeout_s=1.0).close()
    except InputError:
        pytest.skip("this OpenCV reads no HTTP streams")
    with pytest.warns(RuntimeWarning, match="ended or was lost") as caught:
        results = list(pose.stream(f"{camera}/ends", track=True))
    assert len(caught) == 1
    assert 1 <= len(results) <= 12
    assert all(len(poses) == 1 and poses.ids is not None for poses in results)


def test_an_address_where_nobody_answers(pose: PoseEstimator) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        pose.stream("http://127.0.0.1:9/nothing")
