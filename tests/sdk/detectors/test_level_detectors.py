"""RTMDet for real; it, PicoDet, NanoDet and mmdeploy's as graphs of known answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cfpose_sdk.boxes import iou_matrix
from cfpose_sdk.detectors import DetectorOptions, open_detector
from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.media.image import read_image

SIDE = 64
PEOPLE = np.array([[4, 4, 20, 60], [28, 12, 52, 40]], np.float64)  # input pixels
SCORES = (0.9, 0.8)
IMAGE = np.zeros((128, 64, 3), np.uint8)  # letterboxed at scale 0.5, stretched by 1 and 0.5
LETTERBOXED = np.array([[8, 8, 40, 120], [56, 24, 64, 80]])
STRETCHED = np.array([[4, 8, 20, 120], [28, 24, 52, 80]])


def constant_graph(folder: Path, outputs: Mapping[str, NDArray[Any]]) -> Path:
    """A graph of one image that answers with constants."""
    constants = {"zero": np.array(0, np.float32)}
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    for name, value in outputs.items():
        constants[f"{name}_value"] = value.astype(np.float32)
        nodes.append(helper.make_node("Add", [f"{name}_value", "nothing"], [name]))
    graph = helper.make_graph(
        nodes, "constant",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, SIDE, SIDE))],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path = folder / "detector.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def levels(strides: tuple[int, ...], offset: float) -> list[tuple[int, int, NDArray, NDArray]]:
    """(stride, cells a side, (n, n) scores, (n, n, 4) distances in pixels) of PEOPLE.

    Each person at the cell of stride 8 or 16 nearest its middle; `offset` in cells.
    """
    found = []
    for index, stride in enumerate(strides):
        side = math.ceil(SIDE / stride)
        scores, away = np.full((side, side), 0.01), np.ones((side, side, 4))
        for person, box in enumerate(PEOPLE):
            if index == person:
                column, row = (int((box[a] + box[a + 2]) / 2 / stride) for a in range(2))
                x, y = (column + offset) * stride, (row + offset) * stride
                scores[row, column] = SCORES[person]
                away[row, column] = x - box[0], y - box[1], box[2] - x, box[3] - y
        found.append((stride, side, scores, away))
    return found


def logit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(values) - np.log1p(-values)


def bins(cells: NDArray[np.float64], count: int = 8) -> NDArray[np.float64]:
    """(…, 4) distances in cells → (…, 4·B) logits whose mean distance they are."""
    low = np.floor(cells).astype(int)
    logits = np.full((*cells.shape, count), -60.0)
    for place in np.ndindex(cells.shape):
        part = cells[place] - low[place]
        logits[place][low[place]] = math.log(max(1 - part, 1e-20))
        if part > 0:
            logits[place][low[place] + 1] = math.log(part)
    return logits.reshape(*cells.shape[:-1], -1)


def check(path: Path, layout: str, expected: NDArray[Any], **options: Any) -> None:
    detector = open_detector(path, DetectorOptions(**options), device="cpu")
    assert repr(layout) in repr(detector.reading)  # type: ignore[attr-defined]
    found = detector(IMAGE)
    np.testing.assert_allclose(found.boxes, expected, atol=1e-3)
    np.testing.assert_allclose(found.scores, SCORES, atol=1e-4)


def test_rtmdet_as_one_output_a_level(tmp_path: Path) -> None:
    outputs = {
        str(1211 + stride): np.concatenate([logit(scores)[..., None], away], axis=-1)[None]
        for stride, _, scores, away in levels((8, 16, 32), 0.0)
    }
    check(constant_graph(tmp_path, outputs), "rtmdet", LETTERBOXED)


def test_rtmdet_as_two_outputs_a_level(tmp_path: Path) -> None:
    found = levels((8, 16, 32), 0.0)
    outputs = {f"head.0.{s}": logit(scores)[None, None] for s, _, scores, _ in found}
    outputs |= {f"head.1.{s}": away.transpose(2, 0, 1)[None] for s, _, _, away in found}
    check(constant_graph(tmp_path, outputs), "rtmdet", LETTERBOXED)


def test_rtmdet_of_eighty_classes(tmp_path: Path) -> None:
    found = levels((8, 16, 32), 0.0)
    outputs = {}
    for stride, side, scores, away in found:
        classes = np.full((1, 80, side, side), -9.0)
        classes[0, 0] = logit(scores)
        classes[0, 7, 0, 0] = 9.0  # a truck
        outputs |= {f"cls{stride}": classes, f"box{stride}": away.transpose(2, 0, 1)[None]}
    check(constant_graph(tmp_path, outputs), "rtmdet", LETTERBOXED)


def test_mmdeploy(tmp_path: Path) -> None:
    dets = np.zeros((1, 3, 5))
    dets[0, :2] = np.column_stack([PEOPLE, SCORES])
    dets[0, 2] = [1, 1, 9, 9, 0.95]
    outputs = {"dets": dets, "labels": np.array([[0, 0, 16]])}
    check(constant_graph(tmp_path, outputs), "mmdeploy", LETTERBOXED)


@pytest.mark.parametrize("strides", [(8, 16, 32), (8, 16, 32, 64)])
def test_picodet(tmp_path: Path, strides: tuple[int, ...]) -> None:
    outputs = {}
    for stride, side, scores, away in levels(strides, 0.5):
        classes = np.zeros((1, side * side, 80))
        classes[0, :, 0] = scores.ravel()
        outputs[f"score{stride}"] = classes
        outputs[f"box{stride}"] = bins(away.reshape(1, -1, 4) / stride)
    check(constant_graph(tmp_path, outputs), "picodet", STRETCHED)


@pytest.mark.parametrize("strides", [(8, 16, 32), (8, 16, 32, 64)])
@pytest.mark.parametrize("classes", [1, 80])
def test_nanodet(tmp_path: Path, strides: tuple[int, ...], classes: int) -> None:
    """NanoDet-Plus, with its stride of 64, counts from the cells' corners."""
    parts = []
    for stride, side, scores, away in levels(strides, 0.0 if 64 in strides else 0.5):
        rows = np.zeros((side * side, classes))
        rows[:, 0] = scores.ravel()
        parts.append(np.concatenate([rows, bins(away.reshape(-1, 4) / stride)], axis=1))
    output = {"output": np.concatenate(parts)[None]}
    check(constant_graph(tmp_path, output), "nanodet", STRETCHED)


def test_a_layout_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = constant_graph(tmp_path, {"dets": np.zeros((1, 3, 5)), "labels": np.zeros((1, 3))})
    with pytest.raises(ArtifactError, match="do not fit layout 'rtmdet'"):
        open_detector(path, DetectorOptions(layout="rtmdet"), device="cpu")


def test_repeated_people_are_suppressed(tmp_path: Path) -> None:
    found = levels((8, 16, 32), 0.0)
    outputs = {}
    for stride, _, scores, away in found:
        scores, away = scores.copy(), away.copy()
        if stride == 32:  # the second person once more, weaker, a pixel off
            box = PEOPLE[1] + 1
            scores[0, 1], x, y = 0.6, 32, 0
            away[0, 1] = x - box[0], y - box[1], box[2] - x, box[3] - y
        outputs[f"cls{stride}"] = logit(scores)[None, None]
        outputs[f"box{stride}"] = away.transpose(2, 0, 1)[None]
    check(constant_graph(tmp_path, outputs), "rtmdet", LETTERBOXED, nms_iou=0.6)


@pytest.mark.parametrize("side", [320, 640])
def test_the_real_rtmdet(root: Path, shared_dir: Path, side: int) -> None:
    """Both sizes see the two players of the photo, where YOLOX does."""
    folder = shared_dir / "data" / "labellers"
    photo = read_image(root / "examples" / "photos" / "basketball1.jpg")
    options = DetectorOptions(threshold=0.45, nms_iou=0.6)
    found = open_detector(folder / f"rtmdet_nano_person_{side}.onnx", options, device="cpu")(photo)
    other = open_detector(folder / "yolox_nano.onnx", options, device="cpu")(photo)
    assert len(other) == 2
    assert iou_matrix(other.boxes, found.boxes).max(axis=1).min() > 0.75
