"""The person finder and the detectors that users bring."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from cfpose_sdk.detectors.base import BUNDLED_FINDER, Detections, PersonFinder, as_detections
from cfpose_sdk.errors import ArtifactError, BoxError, InputError, SpecError
from cfpose_sdk.spec import FINDER_KEY, FinderSpec

IMAGE = np.zeros((128, 64, 3), np.uint8)  # letterboxed into 64 x 64 at scale 0.5: 32 px wide


def test_boxes_come_back_in_frame_pixels(finder_model: Path) -> None:
    with PersonFinder(finder_model) as finder:
        found = finder(IMAGE)
    # twice the letterbox box; the second person is cut by the frame's right edge (64 px), the
    # duplicate is suppressed, the weak one dropped, the one in the margin has no area in the frame
    np.testing.assert_allclose(found.boxes, [[8, 8, 40, 120], [60, 20, 64, 80]])
    np.testing.assert_allclose(found.scores, [0.9, 0.8])
    assert found.boxes.dtype == found.scores.dtype == np.float32


def test_boxes_are_clipped_to_the_frame(tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save_finder(tmp_path / "f.onnx", [[-9, -3, 99, 99], [-9, 5, -1, 9]], [0.9, 0.8])
    with PersonFinder(path) as finder:
        np.testing.assert_array_equal(finder(IMAGE).boxes, [[0, 0, 64, 128]])


@pytest.mark.parametrize(("sides", "height"), [(("H", "W"), 128), ((192, 192), 192)])
def test_a_graph_with_open_sides_gets_less_margin(
    tmp_path: Path, sides: tuple[str | int, ...], height: int
) -> None:
    """The score is the letterbox's height in pixels, over 256."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        finder (uint8[N, {sides[0]}, {sides[1]}, 3] images)
            => (float[1, 1, 4] boxes, float[1, 1] scores)
            <float[1, 1, 4] all = {{4, 4, 20, 60}}, int64[1] one = {{1}}, int64[2] flat = {{1, 1}},
             float full = {{256}}> {{
          boxes = Identity(all)
          shape = Shape(images)
          rows = Gather(shape, one)
          real = Cast <to = 1> (rows)
          share = Div(real, full)
          scores = Reshape(share, flat)
        }}"""
    )
    spec = FinderSpec("height", (192, 192), threshold=0.1, nms_iou=0.5)
    onnx.helper.set_model_props(model, {FINDER_KEY: spec.to_json()})
    onnx.save_model(model, tmp_path / "f.onnx")
    with PersonFinder(tmp_path / "f.onnx", device="cpu") as finder:
        found = finder(np.zeros((200, 384, 3), np.uint8))
    np.testing.assert_allclose(found.boxes, [[8, 8, 40, 120]])
    np.testing.assert_allclose(found.scores, [height / 256])


def test_threshold_overrides_the_artifact(finder_model: Path) -> None:
    with PersonFinder(finder_model, threshold=0.85) as finder:
        assert len(finder(IMAGE)) == 1
    with PersonFinder(finder_model, threshold=0.1) as finder:
        assert len(finder(IMAGE)) == 3
    with pytest.raises(InputError, match="threshold"):
        PersonFinder(finder_model, threshold=1.5)


def test_nms_comes_from_the_artifact(tiny: ModuleType, tmp_path: Path) -> None:
    spec = dataclasses.replace(tiny.FINDER, nms_iou=1.0)
    path = tiny.save_finder(tmp_path / "f.onnx", [[4, 4, 20, 60]] * 2, [0.9, 0.8], spec=spec)
    with PersonFinder(path) as finder:
        assert len(finder(IMAGE)) == 2


def test_nobody(tiny: ModuleType, tmp_path: Path) -> None:
    path = tiny.save_finder(tmp_path / "f.onnx", [[4, 4, 20, 60]], [0.1])
    with PersonFinder(path) as finder:
        found = finder(IMAGE)
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == (0,)


def test_foreign_files_are_refused(
    tiny: ModuleType, tmp_path: Path, pose_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtifactError, match="not a cfpose person finder"):
        PersonFinder(pose_model)
    newer = tiny.FINDER.to_json().replace('"spec_version": 2', '"spec_version": 3')
    path = tiny.save_finder(tmp_path / "n.onnx", [[1, 1, 2, 2]], [1], metadata={FINDER_KEY: newer})
    with pytest.raises(SpecError, match="upgrade"):
        PersonFinder(path)
    mixed = tiny.save_pose_model(tmp_path / "m.onnx", metadata={FINDER_KEY: tiny.FINDER.to_json()})
    with pytest.raises(ArtifactError, match="expected images"):
        PersonFinder(mixed)
    assert BUNDLED_FINDER.name == "finder-s.onnx"
    monkeypatch.setattr("cfpose_sdk.detectors.base.BUNDLED_FINDER", tmp_path / "gone.onnx")
    with pytest.raises(ArtifactError, match="does not exist"):
        PersonFinder()


def test_detector_results_of_every_kind() -> None:
    boxes = [[1, 2, 3, 4], [5, 6, 7, 8]]
    for value in (boxes, np.array(boxes, np.int32), Detections(np.array(boxes), np.ones(2))):
        found = as_detections(value)
        np.testing.assert_array_equal(found.boxes, boxes)
        np.testing.assert_array_equal(found.scores, [1, 1])
    scored = as_detections(np.column_stack([boxes, [0.5, 0.25]]))
    np.testing.assert_array_equal(scored.boxes, boxes)
    np.testing.assert_array_equal(scored.scores, [0.5, 0.25])
    for nobody in ([], np.zeros((0, 4)), np.zeros((0, 5))):
        assert len(as_detections(nobody)) == 0


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (None, "returned None"),
        ([[1, 2, 3, 4, 1.5]], "scores must lie"),
        ([[1, 2, 3, 4, np.nan]], "scores must lie"),
        ([[3, 2, 1, 4, 0.5]], "box 0 must have"),
        ([[1, 2, 3, 4, 0.5, 0]], r"\(1, 6\)"),
        ([[1, 2], [1]], "boxes must be"),
    ],
)
def test_bad_detector_results_are_refused(value: object, cause: str) -> None:
    with pytest.raises(BoxError, match=cause):
        as_detections(value)
    with pytest.raises(BoxError, match="scores must have shape"):
        Detections(np.array([[1, 2, 3, 4]]), np.ones(2))
