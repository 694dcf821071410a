"""Where poses go: files that are whole, in the formats that others read."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk import commands
from cfpose_sdk.cli import predict as command
from cfpose_sdk.cli.outputs import JOINTS, JsonSink, openpose_frame
from cfpose_sdk.cli.predict import Progress
from cfpose_sdk.errors import InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import UnfinishedFile
from cfpose_sdk.media.frames import Footage
from cfpose_sdk.media.video_writer import VideoRecording
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14, Skeleton

NO_FOOTAGE = Footage(iter(()), lambda: None)


def poses_of(skeleton: Skeleton, ids: list[int] | None = None) -> Poses:
    joints = len(skeleton)
    return Poses(
        xy=np.arange(2 * joints, dtype=np.float32).reshape(1, joints, 2),
        confidence=np.linspace(0.1, 0.9, joints)[None],
        boxes=np.array([[0, 0, 9, 9]]),
        box_scores=np.array([0.5]),
        skeleton=skeleton,
        image_size_wh=(64, 48),
        ids=None if ids is None else np.array(ids),
        source="clip-000003",
        frame=3,
        time_s=0.3,
    )


def triples(poses: Poses, layout: Any) -> dict[str, list[float]]:
    (person,) = openpose_frame(poses, layout)["people"]
    numbers = person["pose_keypoints_2d"]
    assert len(numbers) == 3 * len(JOINTS[layout])
    return {name: numbers[3 * n : 3 * n + 3] for n, name in enumerate(JOINTS[layout])}


def test_openpose_joints_are_in_openposes_order() -> None:
    # OpenPose's own tables: POSE_BODY_25_BODY_PARTS and POSE_COCO_BODY_PARTS
    words = {"L": "left_", "R": "right_"}
    tables = {
        "body25": "Nose Neck RShoulder RElbow RWrist LShoulder LElbow LWrist MidHip RHip RKnee "
        "RAnkle LHip LKnee LAnkle REye LEye REar LEar LBigToe LSmallToe LHeel RBigToe RSmallToe "
        "RHeel",
        "coco18": "Nose Neck RShoulder RElbow RWrist LShoulder LElbow LWrist RHip RKnee RAnkle "
        "LHip LKnee LAnkle REye LEye REar LEar",
    }
    for layout, table in tables.items():
        expected = []
        for part in table.split():
            name = words.get(part[0], "") + part[part[0] in words and part[1].isupper() :]
            expected.append(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
        assert list(JOINTS[layout]) == expected  # type: ignore[index]


@pytest.mark.parametrize("layout", ["body25", "coco18"])
def test_openpose_values(layout: str) -> None:
    poses = poses_of(COCO_17)
    found = triples(poses, layout)
    for name in set(COCO_17.keypoints) & set(found):
        joint = COCO_17.keypoints.index(name)
        np.testing.assert_allclose(found[name][:2], poses.xy[0, joint])
        assert found[name][2] == pytest.approx(poses.confidence[0, joint])
    # shoulders are joints 5 and 6, hips 11 and 12
    np.testing.assert_allclose(found["neck"], [11, 12, poses.confidence[0, 5]], rtol=1e-5)
    if layout == "body25":
        np.testing.assert_allclose(found["mid_hip"], [23, 24, poses.confidence[0, 11]], rtol=1e-5)
        assert found["left_heel"] == [0, 0, 0]


def test_openpose_of_a_skeleton_with_a_neck() -> None:
    poses = poses_of(CROWDPOSE_14, ids=[7])
    found = triples(poses, "coco18")
    np.testing.assert_allclose(found["neck"][:2], poses.xy[0, 13])
    assert found["nose"] == [0, 0, 0]
    assert openpose_frame(poses)["people"][0]["person_id"] == [7]
    assert openpose_frame(poses_of(COCO_17))["people"][0]["person_id"] == [-1]
    assert openpose_frame(Poses.empty(COCO_17, (4, 4)))["people"] == []


def test_a_sink_leaves_a_whole_file_or_none(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "f.json"
    sink = JsonSink(place)
    sink.add(poses_of(COCO_17))
    assert not place.exists()
    sink.abandon()
    assert list(place.parent.iterdir()) == []
    sink = JsonSink(place)
    sink.finish()
    assert json.loads(place.read_text()) == []
    sink = JsonSink(place)
    for _ in range(3):
        sink.add(poses_of(COCO_17))
    sink.finish()
    assert [image["frame"] for image in json.loads(place.read_text())] == [3, 3, 3]
    assert list(place.parent.iterdir()) == [place]

    def interrupted() -> None:
        with UnfinishedFile(tmp_path / "x") as file:
            file.write("text")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert not (tmp_path / "x").exists()
    with pytest.raises(InputError, match="cannot be written"):
        JsonSink(place / "under a file.json")


def test_recordings(tmp_path: Path) -> None:
    recording = VideoRecording(tmp_path / "v.mp4", 12.5)
    for level in (10, 100, 200):
        recording.add(np.full((48, 64, 3), level, np.uint8))
    with pytest.raises(InputError, match="one size"):
        recording.add(np.zeros((50, 64, 3), np.uint8))
    assert not (tmp_path / "v.mp4").exists()
    recording.finish()
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    capture.release()
    with pytest.raises(InputError, match="not UTF-8"):
        VideoRecording(tmp_path / "caf\udce9" / "v.mp4", 10)
    for end in ("finish", "abandon"):  # without a frame nothing is kept
        getattr(VideoRecording(tmp_path / "empty.avi", None), end)()
    assert [file.name for file in tmp_path.iterdir()] == ["v.mp4"]


@pytest.mark.parametrize("fps", [0.5, 23.976, 119.987, 239.571, 999.9])
def test_recordings_of_any_rate(tmp_path: Path, fps: float) -> None:
    recording = VideoRecording(tmp_path / "v.mp4", fps)
    for _ in range(3):
        recording.add(np.zeros((48, 64, 3), np.uint8))
    recording.finish()
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(fps, rel=1e-4)
    capture.release()


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_recording_on_a_full_disk_is_an_error(tmp_path: Path, suffix: str) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    recording = VideoRecording(tmp_path / f"v{suffix}", 10)
    noise = np.random.default_rng(6).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal of a file that is too large: writing fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        for _ in range(20):
            recording.add(noise)
        with pytest.raises(InputError, match=r"cannot be written: \d+ of 20 frames"):
            recording.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals() -> None:
    piped, shown = io.StringIO(), Terminal()
    for stream in (piped, shown):
        with Progress("clip.mp4", 3, stream) as line:
            for _ in range(3):
                line.step()
    assert piped.getvalue() == ""
    assert "clip.mp4  [##" in shown.getvalue()
    assert "3/3" in shown.getvalue()
    assert shown.getvalue().endswith("\r\x1b[K")  # wiped at the end
    assert " " * 40 in shown.getvalue().rpartition("left")[2]  # notebooks know no ESC [ K
    endless = Terminal()
    Progress("camera", None, endless).step()
    assert "camera  1 " in endless.getvalue()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """12 frames of noise, 64 x 128, 10 a second."""
    path = tmp_path / "walk.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 128))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write videos")
    rng = np.random.default_rng(8)
    for _ in range(12):
        writer.write(rng.integers(0, 256, (128, 64, 3), dtype=np.uint8))
    writer.release()
    return path


@pytest.fixture
def predict(pose_model: Path, finder_model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `cfpose predict` with the tiny models."""

    def run(*arguments: object) -> int:
        models = ["--model", str(pose_model), "--detector", str(finder_model)]
        monkeypatch.setattr(sys, "argv", ["cfpose", "predict", *map(str, arguments), *models])
        return commands.cfpose()

    return run


def test_a_video_into_every_sink(
    predict: Any, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = predict(clip, "--save", out, "--json", out / "f.json", "--csv", out / "t.csv", "--coco",
                   out / "c.json", "--openpose", out / "op", "--track", "--smooth")  # fmt: skip
    assert code == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("walk.mp4: 12 frames, 24 poses, ")
    names = ["c.json", "f.json", "op", "t.csv", "walk.mp4"]
    assert sorted(file.name for file in out.iterdir()) == names
    images = json.loads((out / "f.json").read_text())
    assert [image["frame"] for image in images] == list(range(12))
    assert images[2]["image"] == "walk-000002"
    assert images[2]["time_s"] == pytest.approx(0.2)
    assert [person["id"] for person in images[11]["people"]] == [1, 2]
    assert {"xy", "xy_raw"} <= images[5]["people"][0].keys()
    with (out / "t.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12 * 2 * 17
    assert {row["frame"] for row in rows} == {str(n) for n in range(12)}
    assert len(json.loads((out / "c.json").read_text())) == 24
    frames = sorted(file.name for file in (out / "op").iterdir())
    assert frames[0] == "walk-000000_keypoints.json"
    assert len(frames) == 12
    drawn, original = (cv2.VideoCapture(str(path)) for path in (out / "walk.mp4", clip))
    for what in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_WIDTH,
                 cv2.CAP_PROP_FRAME_HEIGHT):  # fmt: skip
        assert drawn.get(what) == original.get(what)
    drawn.release()
    original.release()


def test_photos_beside_a_video_are_looked_at_anew(predict: Any, clip: Path, tmp_path: Path) -> None:
    for name, width in (("a.png", 64), ("b.png", 66)):
        cv2.imwrite(str(tmp_path / name), np.full((128, width, 3), 90, np.uint8))
    options = ("--smooth", "--detect-every", "2")  # no time stamps to smooth by, and two sizes
    place = tmp_path / "f.json"
    assert predict(clip, tmp_path / "a.png", tmp_path / "b.png", *options, "--json", place) == 0
    images = json.loads(place.read_text())
    assert len(images) == 12 + 2
    assert "id" in images[10]["people"][0]
    for image in images[12:]:
        assert [person["box_score"] for person in image["people"]] == [0.9, 0.8]
        assert "id" not in image["people"][0]


def test_openpose_into_one_file(predict: Any, clip: Path, tmp_path: Path) -> None:
    place = tmp_path / "o.json"
    assert predict(clip, "--openpose", place, "--openpose-format", "coco18") == 0
    frames = json.loads(place.read_text())
    assert [frame["image"] for frame in frames[:2]] == ["walk-000000", "walk-000001"]
    assert len(frames[0]["people"][0]["pose_keypoints_2d"]) == 54


def test_a_truncated_video_is_code_1_and_keeps_what_there_is(
    predict: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole.avi"
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 128))
    for level in range(20):
        writer.write(np.full((128, 64, 3), 10 * level, np.uint8))
    writer.release()
    data = whole.read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(data[: int(len(data) * 0.8)])
    assert predict(cut, "--save", tmp_path / "out", "--json", tmp_path / "f.json") == 1
    err = capsys.readouterr().err
    assert "is cut off" in err
    assert "1 of 1 sources" in err
    assert 3 < len(json.loads((tmp_path / "f.json").read_text())) < 18
    assert (tmp_path / "out" / "cut.avi").is_file()


class Interrupting:
    """A sink that is interrupted at its third frame."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self, name: str, footage: Footage, video: bool) -> None: ...

    def add(self, poses: Poses) -> None:
        self.calls.append("add")
        if len(self.calls) == 3:
            raise KeyboardInterrupt

    def end(self) -> None: ...

    def finish(self) -> None:
        self.calls.append("finish")

    def abandon(self) -> None:
        self.calls.append("abandon")


@pytest.mark.parametrize(("live", "last"), [(False, "abandon"), (True, "finish")])
def test_an_interrupt_ends_a_camera_and_abandons_a_file(
    live: bool,
    last: str,
    pose_model: Path,
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "_is_live", lambda source: live)
    sink = Interrupting()
    with PoseEstimator(pose_model, detector=lambda image: [[1, 1, 20, 20]]) as estimator:
        run = command.PredictRun(estimator, [sink], command.StreamOptions())
        with pytest.raises(KeyboardInterrupt):
            run.run([clip])
    assert sink.calls == ["add", "add", "add", last]


def test_an_error_leaves_no_file(predict: Any, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "op").write_text("in the way")
    out = tmp_path / "out"
    assert predict(clip, "--save", out, "--json", out / "f.json", "--openpose",
                   tmp_path / "op") == 2  # fmt: skip
    assert not out.exists()  # found out before any work begins
