"""The soak of tests/long in miniature, and that it would notice a leak."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path

import pytest

from cfpose_sdk.estimator import PoseEstimator
from tests.long import soak

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the soak reads memory from /proc"
)


def test_a_short_soak(pose_model: Path, finder_model: Path, tmp_path: Path) -> None:
    def open_estimator() -> PoseEstimator:
        return PoseEstimator(pose_model, detector=finder_model, threads=1)

    report = {
        "frames": soak.soak_frames(open_estimator, soak.write_clip(tmp_path / "c.avi", 100), 200),
        "cycles": soak.soak_cycles(open_estimator, 8),
        "threads": soak.soak_threads(open_estimator, 4, 10),
    }
    assert soak.failures(report) == []
    assert report["frames"]["frames"] == 200
    assert report["threads"]["predictions"] == 40


def test_a_leak_would_be_seen(pose_model: Path, finder_model: Path) -> None:
    gc.collect()  # what earlier tests left must not go while this one counts
    kept: list[object] = []
    over = threading.Event()

    def leaky() -> PoseEstimator:
        kept.append(open(pose_model, "rb"))  # noqa: SIM115
        kept.append(bytearray(b"x" * 120_000_000))
        thread = threading.Thread(target=over.wait)
        thread.start()
        return PoseEstimator(pose_model, detector=finder_model, threads=1)

    report = {"cycles": soak.soak_cycles(leaky, 8)}
    over.set()
    for one in kept:
        if hasattr(one, "close"):
            one.close()
    assert len(soak.failures(report)) == 3  # memory, threads, handles
    assert soak.failures({"threads": {"different": 2}}) == ["threads: 2 results differ"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_of_a_process_with_an_open_estimator(
    method: str, pose_model: Path, finder_model: Path
) -> None:
    def open_estimator() -> PoseEstimator:
        return PoseEstimator(pose_model, detector=finder_model, threads=1)

    report = {method: soak.soak_processes(open_estimator, method, 1)}
    assert soak.failures(report) == []
    assert report[method]["processes"] == 1


def test_a_child_that_hangs_or_dies_or_differs_would_be_seen(
    pose_model: Path, finder_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, state = os.getpid(), ["hangs"]

    def open_estimator() -> PoseEstimator:
        if os.getpid() != parent:
            if state[0] == "hangs":
                time.sleep(60)
            if state[0] == "dies":
                os._exit(3)
        people = None if os.getpid() == parent else 1
        return PoseEstimator(pose_model, detector=finder_model, threads=1, max_people=people)

    monkeypatch.setattr(soak, "ANSWER_S", 0.3)
    report = {"fork": soak.soak_processes(open_estimator, "fork", 1)}
    assert soak.failures(report) == ["fork: 1 processes never answered"]
    monkeypatch.setattr(soak, "ANSWER_S", 60.0)
    for state[0] in ("dies", "differs"):
        report = {"fork": soak.soak_processes(open_estimator, "fork", 1)}
        assert soak.failures(report) == ["fork: 1 results differ"], state
