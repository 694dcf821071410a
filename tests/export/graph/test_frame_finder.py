"""The finder on whole frames: its letterbox against OpenCV's, its boxes against today's path."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from cfpose_export.cli import main
from cfpose_export.graph.frame_finder import FINDER_CORE_INPUT, frame_finder
from cfpose_export.graph.rules import (
    is_finder,
    load_model,
    read_finder_spec,
    whole_letterboxes,
    with_outputs,
)
from cfpose_export.proof.runtimes import FinderBound, nearest_gaps
from cfpose_sdk.backends import Backend, open_backend
from cfpose_sdk.boxes import fitting, letterbox
from cfpose_sdk.detectors.base import BUNDLED_FINDER, PersonFinder
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.media.image import Image, read_image

# (width, height): shrunk and grown, by whole and by odd factors, lying and standing, thin, as it is
SIZES_WH = [(768, 576), (320, 240), (1280, 720), (720, 1281), (48, 64), (33, 517), (480, 480)]


@pytest.fixture(scope="module")
def bundled() -> onnx.ModelProto:
    return load_model(BUNDLED_FINDER)


@pytest.fixture(scope="module")
def frame_path(bundled: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled finder on frames, which also gives the letterbox that it makes."""
    path = tmp_path_factory.mktemp("finder") / "frame.onnx"
    onnx.save(with_outputs(frame_finder(bundled), (FINDER_CORE_INPUT,)), str(path))
    return path


@pytest.fixture(scope="module")
def backend(frame_path: Path) -> Backend:
    return open_backend(frame_path, device="cpu", threads=1)


@pytest.fixture(scope="module")
def street(root: Path) -> Image:
    return read_image(root / "examples" / "photos" / "street.jpg")


@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_the_letterbox_is_opencvs_to_a_grey_level(
    backend: Backend, bundled: onnx.ModelProto, street: Image, size_wh: tuple[int, int]
) -> None:
    spec = read_finder_spec(bundled)
    frame = np.asarray(cv2.resize(street, size_wh), np.uint8)
    canvas, _ = letterbox(frame, spec.size_wh, spec.pad_value)
    found = backend.run({"frame": frame})
    difference = np.abs(found[FINDER_CORE_INPUT][0] - canvas)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.1
    assert {len(found[name]) for name in ("boxes", "scores")} == {1}


def test_the_picture_is_as_large_as_the_hosts(bundled: onnx.ModelProto) -> None:
    """Of frames up to 8192 px the fitted size is rounded alike, but for ties of float64."""
    width, height = read_finder_spec(bundled).size_wh
    sides = np.random.default_rng(0).integers(1, 8193, (20000, 2))
    w, h = sides.T.astype(np.float32)
    in_graph = [
        np.maximum(1, np.round(np.minimum(side, own * side / other)))
        for side, own, other in ((np.float32(width), w, h), (np.float32(height), h, w))
    ]
    on_host = [
        [max(1, round(side * fitting((h, w), (width, height)))) for side in (w, h)]
        for w, h in sides.tolist()
    ]
    wrong = (np.stack(in_graph, axis=1) != np.array(on_host)).any(axis=1)
    assert wrong.mean() < 0.001


@pytest.mark.parametrize("name", ["street.jpg", "basketball1.jpg"])
def test_the_same_people_are_found(
    bundled: onnx.ModelProto, frame_path: Path, root: Path, tmp_path: Path, name: str
) -> None:
    """Boxes within a letterbox pixel of those on whole letterboxes, and nobody more or less."""
    image = read_image(root / "examples" / "photos" / name)
    whole = tmp_path / "whole.onnx"
    onnx.save(whole_letterboxes(bundled), str(whole))
    with PersonFinder(frame_path, device="cpu") as frame, PersonFinder(whole) as plain:
        scale = fitting(image.shape, plain.spec.size_wh)
        got, expected = frame(image), plain(image)
        assert len(got) == len(expected) > 1
        gaps, scores = nearest_gaps(expected.boxes, expected.scores, got.boxes, got.scores)
        assert gaps.max() * scale <= 1
        assert scores.max() <= 0.01


def test_what_cannot_be_rebuilt_is_refused(bundled: onnx.ModelProto) -> None:
    framed = frame_finder(bundled)
    assert is_finder(framed)
    assert framed.SerializeToString(deterministic=True) == frame_finder(bundled).SerializeToString(
        deterministic=True
    )
    with pytest.raises(InputError, match="takes a frame already"):
        frame_finder(framed)
    other = onnx.ModelProto()
    other.CopyFrom(bundled)
    other.graph.node.append(onnx.helper.make_node("Identity", ["images"], ["copy"], name="copy"))
    with pytest.raises(ExportError, match="images goes into"):
        frame_finder(other)


def test_the_command_writes_it_when_its_proof_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "frame.onnx"
    assert main(["frame", "default-finder", "-o", str(path)]) == 0
    assert '"candidates"' in capsys.readouterr().out
    assert [value.name for value in load_model(path).graph.input] == ["frame"]
    monkeypatch.setattr("cfpose_export.proof.runtimes.FRAME_FINDER", FinderBound(0.0, 0.0))
    assert main(["frame", "default-finder", "-o", str(tmp_path / "other.onnx")]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["frame.onnx"]
