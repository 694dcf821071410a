"""Detectors of others: YOLOX for real, every other family as a tiny graph with a known answer."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cfpose_sdk.boxes import iou_matrix
from cfpose_sdk.detectors import DetectorOptions, open_detector
from cfpose_sdk.detectors.ultralytics import UltralyticsDetector
from cfpose_sdk.errors import ArtifactError, BackendError, InputError, MissingDependencyError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.media.image import read_image

SIDE = 64  # 8 x 8 + 4 x 4 + 2 x 2 cells
CELLS = 84
# two people in the 64 x 64 input, and a duplicate of the first that is a little weaker
PEOPLE = np.array([[4, 4, 20, 60], [30, 10, 50, 40], [5, 4, 21, 60]], np.float64)
SCORES = np.array([0.9, 0.8, 0.7])
IMAGE = np.zeros((128, 64, 3), np.uint8)  # letterboxed at scale 0.5, stretched by 1 and 0.5
Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A graph that answers with constants, and adds 0 x the input so that it needs one."""

    def save(
        outputs: Mapping[str, np.ndarray],
        shape: tuple[Any, ...] = (1, 3, SIDE, SIDE),
        kind: int = TensorProto.FLOAT,
        metadata: Mapping[str, str] | None = None,
        name: str = "detector.onnx",
    ) -> Path:
        nodes = [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        ]
        constants = {"zero": np.array(0, np.float32)}
        for key, value in outputs.items():
            constants[f"{key}_value"] = value.astype(np.float32)
            nodes.append(helper.make_node("Add", [f"{key}_value", "nothing"], [key]))
        graph = helper.make_graph(
            nodes,
            "constant",
            [helper.make_tensor_value_info("images", kind, shape)],
            [helper.make_tensor_value_info(k, TensorProto.FLOAT, v.shape)
             for k, v in outputs.items()],
            [numpy_helper.from_array(value, key) for key, value in constants.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, dict(metadata or {}))
        onnx.checker.check_model(model)
        (tmp_path / name).write_bytes(model.SerializeToString())
        return tmp_path / name

    return save


def centred(xyxy: np.ndarray) -> np.ndarray:
    return np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], axis=1)


def rows(count: int, classes: int, objectness: bool) -> np.ndarray:
    """(1, count, 4 [+ 1] + classes) decoded rows: people at 7, 30 and 50, a cat at 10."""
    first = 5 if objectness else 4
    out = np.zeros((1, count, first + classes))
    out[0, :, :2] = np.linspace(2, SIDE - 2, count)[:, None]  # centres span the picture
    out[0, :, 2:4] = 9
    at = [7, 30, 50]
    out[0, at, :4] = centred(PEOPLE)
    out[0, at, first] = SCORES
    out[0, 10, first + min(1, classes - 1)] = 0.99 if classes > 1 else 0.0
    if objectness:
        out[0, :, 4] = 1.0
    return out


def assert_two_people(found: Any, scale_xy: tuple[float, float] = (2, 2)) -> None:
    # the second person's right edge, 100 px, lies outside of the 64 px wide frame
    expected = np.clip(PEOPLE[:2] * np.tile(scale_xy, 2), 0, [64, 128, 64, 128])
    np.testing.assert_allclose(found.boxes, expected, atol=1e-4)
    np.testing.assert_allclose(found.scores, SCORES[:2], atol=1e-5)


def test_yolov8(build: Build) -> None:
    output = rows(CELLS, 80, objectness=False).transpose(0, 2, 1)
    detector = open_detector(build({"output0": output}))
    assert_two_people(detector(IMAGE))
    assert "yolov8" in repr(detector.reading)  # type: ignore[attr-defined]


def test_yolov5_and_decoded_yolox(build: Build) -> None:
    for count, layout in ((3 * CELLS, "yolov5"), (CELLS, "yolox-decoded")):
        detector = open_detector(build({"output": rows(count, 80, objectness=True)}))
        assert layout in repr(detector.reading)  # type: ignore[attr-defined]
        assert_two_people(detector(IMAGE))


def test_raw_yolox(build: Build) -> None:
    output = np.zeros((1, CELLS, 85))
    grid = [(x, y, s) for s in (8, 16, 32) for y in range(SIDE // s) for x in range(SIDE // s)]
    for row, box, score in zip((9, 70, 20), centred(PEOPLE), SCORES, strict=True):
        x, y, stride = grid[row]
        output[0, row, :2] = box[:2] / stride - (x, y)
        output[0, row, 2:4] = np.log(box[2:] / stride)
        output[0, row, 4:6] = score / 0.95, 0.95
    detector = open_detector(build({"output": output}))
    assert "'yolox'" in repr(detector.reading)  # type: ignore[attr-defined]
    assert_two_people(detector(IMAGE))


def end2end() -> np.ndarray:
    out = np.zeros((1, 300, 6))
    out[0, :3, :4], out[0, :3, 4] = PEOPLE, SCORES
    out[0, 3] = [1, 1, 9, 9, 0.99, 16]  # a dog
    return out


def test_end_to_end(build: Build) -> None:
    path = build({"output0": end2end()}, metadata={"names": "{0: 'person', 16: 'dog'}"})
    found = open_detector(path)(IMAGE)
    assert len(found) == 3  # no suppression: the network has done its own
    np.testing.assert_allclose(found.boxes[0], PEOPLE[0] * 2, atol=1e-4)
    dogs = open_detector(path, DetectorOptions(person_class=16))(IMAGE)
    np.testing.assert_allclose(dogs.boxes, [[2, 2, 18, 18]], atol=1e-4)


def test_rf_detr(build: Build) -> None:
    boxes, logits = np.full((1, 30, 4), 0.5), np.full((1, 30, 91), -9.0)
    boxes[0, :2] = centred(PEOPLE[:2]) / SIDE
    logits[0, :2, 1] = np.log(SCORES[:2] / (1 - SCORES[:2]))
    logits[0, 5, 0] = 9  # column 0 is no person
    for outputs in ({"dets": boxes, "labels": logits}, {"labels": logits, "dets": boxes}):
        found = open_detector(build(outputs))(IMAGE)
        assert_two_people(found, (1, 2))  # stretched: 64 px stay 64, 128 became 64
    eighty = {"boxes": boxes, "scores": logits[..., :80]}
    with pytest.raises(ArtifactError, match="person_class"):
        open_detector(build(eighty))
    with pytest.raises(ArtifactError, match="pixels"):
        open_detector(build(eighty), DetectorOptions(person_class=1))
    settled = DetectorOptions(person_class=1, pixels="rgb01")
    assert_two_people(open_detector(build(eighty), settled)(IMAGE), (1, 2))


def test_thresholds_and_suppression(build: Build) -> None:
    path = build({"o": rows(CELLS, 80, objectness=False).transpose(0, 2, 1)})
    assert len(open_detector(path, DetectorOptions(threshold=0.85))(IMAGE)) == 1
    assert len(open_detector(path, DetectorOptions(nms_iou=1.0))(IMAGE)) == 3
    assert len(open_detector(path, DetectorOptions(threshold=1.0))(IMAGE)) == 0


def test_pixels_are_fed_as_each_family_was_trained(build: Build, tmp_path: Path) -> None:
    colour = np.zeros((SIDE, SIDE, 3), np.uint8)
    colour[:] = (10, 100, 250)  # blue, green, red
    expected = {
        "bgr255": [10, 100, 250],
        "rgb01": np.array([250, 100, 10]) / 255,
        "rgb-imagenet": (np.array([250, 100, 10]) / 255 - [0.485, 0.456, 0.406])
        / [0.229, 0.224, 0.225],
    }
    path = build({"output0": end2end()}, kind=TensorProto.FLOAT16)
    for pixels, values in expected.items():
        options = DetectorOptions(person_class=0, pixels=pixels)  # type: ignore[arg-type]
        detector: Any = open_detector(path, options)
        fed: list[np.ndarray] = []
        run = detector._backend.run
        detector._backend.run = lambda feeds, run=run, fed=fed: (fed.append(feeds["images"]),
                                                                run(feeds))[1]  # fmt: skip
        detector(colour)
        assert fed[0].dtype == np.float16
        assert fed[0].shape == (1, 3, SIDE, SIDE)
        np.testing.assert_allclose(fed[0][0, :, 5, 5], values, rtol=2e-3)


@pytest.mark.parametrize(
    ("output", "metadata", "option"),
    [
        (np.zeros((1, CELLS, 25)), {}, "layout"),  # YOLOX of 20 classes, or a turned YOLOv8
        (np.zeros((1, CELLS, 6)), {}, "layout"),  # YOLOX of one class, or end to end
        (np.zeros((1, 56, CELLS)), {}, "layout"),  # 52 classes, or a pose model
        (np.zeros((1, 300, 7)), {}, "layout"),
        (np.zeros((1, 300, 6)), {}, "person_class"),
        (np.zeros((1, 300, 6)), {"names": "{0: 'cat'}"}, "person_class"),
        (np.full((1, CELLS, 85), 20.0), {}, "layout"),  # neither pixels nor offsets
        (np.zeros((300, 6)), {}, "layout"),
    ],
)
def test_what_is_open_is_an_error_that_names_the_option(
    build: Build, output: np.ndarray, metadata: dict[str, str], option: str
) -> None:
    with pytest.raises(ArtifactError, match=rf"DetectorOptions\({option}="):
        open_detector(build({"output": output}, metadata=metadata))


def test_classes_come_from_the_metadata(build: Build) -> None:
    names = {"names": "{0: 'cat', 1: 'person', 2: 'dog'}"}
    output = rows(CELLS, 3, objectness=False).transpose(0, 2, 1)
    detector = open_detector(build({"o": output}, metadata=names))
    np.testing.assert_allclose(detector(IMAGE).scores, [0.99])  # row 10, the second class
    with pytest.raises(ArtifactError, match="none of them"):
        open_detector(build({"o": output}, metadata=names), DetectorOptions(person_class=3))


def test_sizes(build: Build) -> None:
    output = {"o": rows(CELLS, 80, objectness=False).transpose(0, 2, 1)}
    free = build(output, shape=(1, 3, "h", "w"))
    with pytest.raises(ArtifactError, match="size_wh"):
        open_detector(free)
    assert_two_people(open_detector(free, DetectorOptions(size_wh=(SIDE, SIDE)))(IMAGE))
    told = build(output, shape=(1, 3, "h", "w"), metadata={"imgsz": "[64, 64]"})
    assert_two_people(open_detector(told)(IMAGE))
    fixed = build(output)
    with pytest.raises(ArtifactError, match="takes 64 x 64"):
        open_detector(fixed, DetectorOptions(size_wh=(32, 32)))
    for shape, kind, cause in (((1, SIDE, SIDE, 3), TensorProto.FLOAT, r"\[1, 3, height, width\]"),
                               ((1, 3, SIDE, SIDE), TensorProto.UINT8, "float32")):  # fmt: skip
        with pytest.raises(ArtifactError, match=cause):
            open_detector(build(output, shape=shape, kind=kind))


@pytest.mark.parametrize(
    "options",
    [{"threshold": 2}, {"nms_iou": -1}, {"layout": "yolo99"}, {"pixels": "hsv"},
     {"person_class": -1}, {"size_wh": (640, 0)}],
)  # fmt: skip
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        DetectorOptions(**options)


def test_in_the_estimator(build: Build, pose_model: Path, finder_model: Path) -> None:
    path = build({"o": rows(CELLS, 80, objectness=False).transpose(0, 2, 1)}, name="mine.onnx")
    options = DetectorOptions(threshold=0.85)
    with PoseEstimator(pose_model, detector=path, detector_options=options) as pose:
        assert len(pose.predict(IMAGE)) == 1
        assert "mine (mine.onnx, CPUExecutionProvider)" in pose.info.detector
        with pickle.loads(pickle.dumps(pose)) as again:
            assert len(again.predict(IMAGE)) == 1
    with PoseEstimator(pose_model, detector=finder_model, detector_options=options) as pose:
        assert len(pose.predict(IMAGE)) == 1
    with pytest.raises(InputError, match="layout cannot be chosen"):
        PoseEstimator(pose_model, detector=finder_model,
                      detector_options=DetectorOptions(layout="yolox"))  # fmt: skip
    with pytest.raises(InputError, match="callable"):
        PoseEstimator(pose_model, detector=lambda image: [], detector_options=options)
    detector = open_detector(path)
    assert_two_people(pickle.loads(pickle.dumps(detector))(IMAGE))
    detector.close()
    with pytest.raises(BackendError, match="is closed"):
        detector(IMAGE)


@pytest.fixture
def ultralytics(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for the package, that notes how it is called."""
    calls: list[dict[str, Any]] = []

    class Tensor:
        def __init__(self, values: Any) -> None:
            self.values = np.asarray(values)

        def cpu(self) -> Tensor:
            return self

        def numpy(self) -> np.ndarray:
            return self.values

    class YOLO:
        names: dict[int, str] = {0: "person", 1: "cat"}  # noqa: RUF012

        def __init__(self, path: str) -> None:
            if "bad" in path:
                raise RuntimeError("no checkpoint")

        def predict(self, image: np.ndarray, **options: Any) -> list[Any]:
            calls.append(options)
            boxes = SimpleNamespace(xyxy=Tensor(PEOPLE[:2] * 2), conf=Tensor(SCORES[:2]))
            return [SimpleNamespace(boxes=boxes)]

    package = ModuleType("ultralytics")
    package.YOLO = YOLO  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ultralytics", package)
    return calls


def test_ultralytics_checkpoints(ultralytics: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "yolo.pt"
    path.touch()
    options = DetectorOptions(threshold=0.4, size_wh=(320, 192))
    detector = open_detector(path, options, device="cpu")
    assert_two_people(detector(IMAGE))
    assert ultralytics == [{"verbose": False, "classes": [0], "conf": 0.4, "imgsz": (192, 320),
                            "device": "cpu"}]  # fmt: skip
    detector.close()
    with pytest.raises(BackendError, match="is closed"):
        detector(IMAGE)
    (tmp_path / "bad.pt").touch()
    with pytest.raises(ArtifactError, match="no checkpoint"):
        open_detector(tmp_path / "bad.pt")
    with pytest.raises(ArtifactError, match="does not exist"):
        open_detector(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="layout"):
        open_detector(path, DetectorOptions(layout="yolov8"))
    again = pickle.loads(pickle.dumps(open_detector(path)))
    assert isinstance(again, UltralyticsDetector)


def test_ultralytics_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yolo.pt").touch()
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(MissingDependencyError, match=r"cfpose-sdk\[ultralytics\]"):
        open_detector(tmp_path / "yolo.pt")


def reference_yolox(path: Path, image: np.ndarray, threshold: float) -> np.ndarray:
    """(N, 5) boxes and scores before suppression, decoded in float64, cell by cell."""
    height, width = image.shape[:2]
    scale = min(416 / width, 416 / height)
    fitted = (round(width * scale), round(height * scale))
    canvas = np.full((416, 416, 3), 114, np.uint8)
    canvas[: fitted[1], : fitted[0]] = cv2.resize(image, fitted, interpolation=cv2.INTER_AREA)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (raw,) = session.run(None, {"images": canvas.transpose(2, 0, 1)[None].astype(np.float32)})
    found, row = [], 0
    for stride in (8, 16, 32):
        for y in range(416 // stride):
            for x in range(416 // stride):
                values = raw[0, row].astype(np.float64)
                row += 1
                if (score := values[4] * values[5]) < threshold:
                    continue
                cx, cy = (values[0] + x) * stride, (values[1] + y) * stride
                w, h = np.exp(values[2]) * stride, np.exp(values[3]) * stride
                box = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]) / scale
                found.append([*box.clip(0, [width, height, width, height]), score])
    assert row == raw.shape[1]
    return np.array(found).reshape(-1, 5)


def test_the_real_yolox(root: Path, shared_dir: Path) -> None:
    path = shared_dir / "data" / "labellers" / "yolox_nano.onnx"
    if not path.is_file():
        pytest.skip("yolox_nano.onnx is not there")
    options = DetectorOptions(threshold=0.3, nms_iou=0.45)
    with open_detector(path, options, threads=1) as detector:  # type: ignore[attr-defined]
        assert detector.reading == dataclasses.replace(detector.reading, layout="yolox",
                                                       person_class=0, pixels="bgr255")  # fmt: skip
        image = read_image(root / "examples" / "photos" / "street.jpg")
        found = detector(image)
    expected = reference_yolox(path, image, 0.3)
    order = np.argsort(-expected[:, 4])
    kept: list[int] = []
    for row in order:
        if all(iou_matrix(expected[row, :4], expected[k, :4]).item() <= 0.45 for k in kept):
            kept.append(int(row))
    assert len(found) == len(kept) >= 3
    np.testing.assert_allclose(found.boxes, expected[kept, :4], atol=2e-3)
    np.testing.assert_allclose(found.scores, expected[kept, 4], atol=1e-5)
