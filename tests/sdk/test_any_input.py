"""Whatever is given as an image, as boxes, as a path or as an output: a right answer, or an error
of cfpose's tree.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given

from cfpose_sdk import commands
from cfpose_sdk.backends import Backend
from cfpose_sdk.cli.outputs import OutputFiles
from cfpose_sdk.cli.predict import parts_of
from cfpose_sdk.errors import CfposeError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.media.frames import Unread
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import SPEC_KEY, ModelSpec
from tests.any_values import (
    any_array,
    any_boxes,
    any_path,
    any_text,
    bent_bytes,
    draws,
    seeds,
)

SPEC = ModelSpec(name="middle", skeleton=COCO_17, size_wh=(12, 16))


class Middle(Backend):
    """Every joint in the middle of its crop, which is the middle of the box."""

    path, provider = Path("middle.onnx"), "middle"
    inputs, outputs = ("crops",), ("keypoints", "confidence")
    metadata = {SPEC_KEY: SPEC.to_json()}  # noqa: RUF012

    def _run(self, feeds: Any) -> dict[str, np.ndarray]:
        people = len(feeds["crops"])
        return {
            "keypoints": np.broadcast_to(np.float32([6, 8]), (people, 17, 2)),
            "confidence": np.full((people, 17), 0.5, np.float32),
        }

    def close(self) -> None: ...


PHOTO = np.zeros((20, 30, 3), np.uint8)
ESTIMATOR = PoseEstimator(Middle(), detector=lambda image: [[0, 0, 4, 4]])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with photos, a video, and what is neither."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg", "d/1.png"):
        Path(name).parent.mkdir(exist_ok=True)
        cv2.imwrite(name, PHOTO)
    Path("e.jpg").touch()
    Path("t.mp4").write_bytes(b"no video")
    writer = cv2.VideoWriter("v.avi", cv2.VideoWriter.fourcc(*"MJPG"), 25, (32, 32))
    for _ in range(3):
        writer.write(np.zeros((32, 32, 3), np.uint8))
    writer.release()
    os.symlink("loop", "loop")
    os.symlink("nothing", "dead")
    return tmp_path


@pytest.fixture
def calm() -> Iterator[None]:
    """Sources that are skipped in a stream are warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=RuntimeWarning, message="(?s).*(skipped|first is)"
        )
        yield


@draws(1200)
@given(seeds)
def test_any_array_as_an_image(rng: random.Random) -> None:
    array = any_array(rng)
    try:
        poses = ESTIMATOR.predict(array, boxes=[[0, 0, 4, 4]])
    except CfposeError:
        return
    assert array.dtype == np.uint8
    assert poses.image_size_wh == (array.shape[1], array.shape[0])
    assert np.allclose(poses.xy, 2)


@draws(1500)
@given(seeds)
def test_any_value_as_boxes(rng: random.Random) -> None:
    boxes = any_boxes(rng)
    found = PoseEstimator(Middle(), detector=lambda image: boxes)
    for estimate in (lambda: ESTIMATOR.predict(PHOTO, boxes=boxes), lambda: found.predict(PHOTO)):
        try:
            poses = estimate()
        except CfposeError:
            continue
        if boxes is None:
            continue  # of predict: run the detector
        given_boxes = np.asarray(getattr(boxes, "xyxy", boxes), dtype=np.float64)
        assert len(poses) == len(given_boxes)
        middles = (given_boxes[:, :2] + given_boxes[:, 2:4]) / 2 if len(poses) else np.zeros((0, 2))
        span = np.abs(given_boxes).max(initial=1.0)
        assert np.allclose(poses.xy, middles[:, None], rtol=1e-4, atol=1e-5 * span)
        assert "Infinity" not in poses.to_json()
        assert poses.plot(boxes=True, labels=True).shape == PHOTO.shape


@draws(600)
@given(seeds)
def test_any_path_as_a_source(place: Path, calm: None, rng: random.Random) -> None:
    path = any_path(rng)
    for estimate in (
        lambda: ESTIMATOR.predict(path, boxes=[]),
        lambda: list(islice(ESTIMATOR.stream(path, prefetch=0), 4)),
        lambda: list(islice(ESTIMATOR.stream([path, "a.png"], prefetch=0), 4)),
    ):
        try:
            estimate()
        except CfposeError as error:
            str(error).encode()  # what no console could print
    text = os.fsdecode(path)
    assert all(isinstance(part, Unread | Path | str | int) for part in parts_of(text))


MAGIC = (
    b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"MM\0*",
    b"RIFF\0\0\0\0WEBP", b"BM", b"P6 2 2 255\n", b"P5\n", b"\0\0\0\x20ftypavif", b"\0\0\0\x0cjP  ",
    b"#?RADIANCE\n", b"v/1\x01",
)  # fmt: skip


@draws(500)
@given(seeds)
def test_any_bytes_as_a_photo_or_video(place: Path, calm: None, rng: random.Random) -> None:
    whole = cv2.imencode(rng.choice((".png", ".jpg", ".bmp", ".webp", ".tiff")), PHOTO)[1].tobytes()
    content = bent_bytes(rng, whole)
    if rng.random() < 0.4:
        content = rng.choice(MAGIC) + rng.randbytes(rng.randrange(80))
    file = Path(rng.choice(("c.jpg", "c.jpg", "c.jpg", "c.mp4", "c")))
    file.write_bytes(content)
    for estimate in (
        lambda: ESTIMATOR.predict(file, boxes=[[0, 0, 4, 4]]),
        lambda: list(islice(ESTIMATOR.stream(file, prefetch=0), 4)),
    ):
        try:
            estimate()
        except CfposeError:
            continue


@draws(500)
@given(seeds)
def test_any_text_as_an_output(place: Path, rng: random.Random) -> None:
    poses = ESTIMATOR.predict("a.png")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    out, name = Path("out"), any_text(rng)
    suffix = rng.choice(("", "", ".png", ".json", "\udcff", ".\ud800", ".png\0"))
    chosen = rng.choice((f"out/{name}{suffix}", f"{name}{suffix}"))
    option = rng.choice(("json", "csv", "coco", "openpose", "pictures"))
    as_path = option in ("openpose", "pictures")
    for write in (
        lambda: poses.save(f"out/{name}{suffix}"),
        lambda: _write_all(OutputFiles(**{option: Path(chosen) if as_path else chosen}), poses),
    ):
        try:
            write()
        except CfposeError as error:
            str(error).encode()
    assert list(place.rglob("*.part*")) == [], "a part is left"
    for path, content in before.items():
        assert path.read_bytes() == content, "an input is hurt"
    for made in {*place.rglob("*")} - before.keys():
        if made.is_file() and made.parent != place / "d":
            made.unlink()
    shutil.rmtree(out, ignore_errors=True)


def _write_all(outputs: OutputFiles, poses: Any) -> None:
    outputs.check([path for path in Path().rglob("*") if path.is_file()])
    for sink in outputs.open():
        sink.begin("a.png", None, False)
        sink.add(poses)
        sink.end()
        sink.finish()


OPTIONS = (
    "--threshold", "--nms", "--max-people", "--detect-every", "--line-width", "--colours", "--json",
    "--device", "--reconnect", "--model", "--detector", "--openpose-format", "--track", "--smooth",
)  # fmt: skip


@draws(200)
@given(seeds)
def test_any_words_on_the_command_line(
    place: Path,
    tiny_defaults: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rng: random.Random,
) -> None:
    words = ["cfpose", "predict", any_text(rng)]
    for _ in range(rng.randrange(1, 3)):
        words += [rng.choice(OPTIONS), rng.choice((any_text(rng), "0", "-1", "nan", "1e999", "x"))]
    monkeypatch.setattr(sys, "argv", words)
    try:
        code: object = commands.cfpose()
    except SystemExit as end:  # argparse
        code = end.code
    assert code in (0, 1, 2)
    capsys.readouterr()
