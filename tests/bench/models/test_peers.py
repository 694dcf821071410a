"""Peers: YOLOX boxes, the SimCC graph for rtmlib, adapters on stand-ins, environments."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import cfpose_bench.peers
from cfpose_bench import peer_commands
from cfpose_bench.cli import main
from cfpose_bench.data.box_files import read_boxes
from cfpose_bench.data.dataset import open_dataset
from cfpose_bench.peers.simcc_graph import write_simcc_graph
from cfpose_export.graph.rules import read_spec
from cfpose_sdk.backends import open_backend
from cfpose_sdk.crops import crop_transforms, extract_crops
from cfpose_sdk.detectors import DetectorOptions, open_detector
from cfpose_sdk.errors import ArtifactError, BackendError
from cfpose_sdk.estimator import BUNDLED_MODEL
from cfpose_sdk.keypoints import decode_simcc
from cfpose_sdk.media.image import read_image

FOLDER = Path(cfpose_bench.peers.__file__).parent


def yolox_stand_in(path: Path, rows: dict[int, list[float]], side: int = 416) -> Path:
    """A graph that answers `rows` (cx, cy, w, h, objectness, person) whatever it sees."""
    count = sum((side // s) ** 2 for s in (8, 16, 32))
    answer = np.zeros((1, count, 85), np.float32)
    for index, row in rows.items():
        answer[0, index, :6] = row
    nodes = [
        helper.make_node("ReduceMin", ["images"], ["low"], keepdims=0),
        helper.make_node("Mul", ["low", "zero"], ["none"]),
        helper.make_node("Add", ["answer", "none"], ["output"]),
    ]
    tensors = [
        helper.make_tensor("answer", TensorProto.FLOAT, answer.shape, answer.ravel()),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, "H", "W"])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, list(answer.shape))
    graph = helper.make_graph(nodes, "yolox", [images], [output], tensors)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))
    return path


def test_yolox_boxes_by_hand(tmp_path: Path) -> None:
    stride_32 = 52 * 52 + 26 * 26  # its first cell
    rows = {
        # stride 8, cell (3, 1): centre (28, 12), 16 x 8
        1 * 52 + 3: [0.5, 0.5, np.log(2), 0.0, 0.5, 0.8],
        1 * 52 + 4: [-0.5, 0.5, np.log(2), 0.0, 0.5, 0.6],  # the same box again, worse
        # stride 32, cell (2, 0): centre (64, 0), 64 x 32, half above the photo
        stride_32 + 2: [0.0, 0.0, np.log(2), 0.0, 0.9, 1.0],
        stride_32 + 5: [0.0, 0.0, 0.0, 0.0, 0.1, 0.4],  # below the threshold
    }
    options = DetectorOptions(threshold=0.05, nms_iou=0.45, layout="yolox", size_wh=(416, 416))
    yolox = open_detector(yolox_stand_in(tmp_path / "y.onnx", rows), options, device="cpu")
    found = yolox(np.zeros((208, 208, 3), np.uint8))  # half the letterbox: scale 2
    np.testing.assert_allclose(found.boxes, [[16, 0, 48, 8], [10, 4, 18, 8]], atol=1e-4)
    np.testing.assert_allclose(found.scores, [0.9, 0.4], atol=1e-6)
    yolox.close()
    other = dataclasses.replace(options, size_wh=(320, 320))
    with (
        pytest.raises(ArtifactError, match="a YOLOX of input 320 x 320 cannot have 3549 rows"),
        open_detector(tmp_path / "y.onnx", other, device="cpu") as smaller,
    ):
        smaller(np.zeros((9, 9, 3), np.uint8))


def test_boxes_command_writes_what_boxes_reads(
    tmp_path: Path, dataset_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yolox = yolox_stand_in(tmp_path / "y.onnx", {55: [0.5, 0.5, 0.0, 0.0, 1.0, 0.75]})
    (dataset_folder / "images/000000000002.png").write_bytes(b"damaged")
    target = tmp_path / "boxes.json"
    arguments = ["boxes", str(yolox), "--dataset", str(dataset_folder), "-o", str(target)]
    arguments += ["--size", "416", "416", "--most", "1"]
    assert main(arguments) == 0
    boxes = read_boxes(target)
    assert set(boxes) == {1, 3}
    np.testing.assert_allclose(boxes[1][:, 4], [0.75], atol=1e-6)
    assert "000000000002.png" in capsys.readouterr().err
    assert set(open_dataset(dataset_folder).photos) >= set(boxes)


def test_the_simcc_graph_is_the_artifacts_own_network(tmp_path: Path, root: Path) -> None:
    target = tmp_path / "simcc.onnx"
    assert main(["simcc", str(BUNDLED_MODEL), "-o", str(target)]) == 0
    assert json.loads(target.with_suffix(".json").read_text()) == {
        "mean": None,
        "std": None,
        "score_unit": 1.0,
    }
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    _, _, height, width = entry.shape
    photo = read_image(root / "examples/photos/basketball1.jpg")
    boxes = np.array([[36, 80, 172, 480]], dtype=float)
    crops = extract_crops(photo, crop_transforms(boxes, (width, height), 1.25), (width, height))
    planes = crops.transpose(0, 3, 1, 2).astype(np.float32)
    x, y = session.run(["simcc_x", "simcc_y"], {"input": planes})
    with open_backend(BUNDLED_MODEL, device="cpu") as backend:
        coarse = backend.run({"crops": crops})["coarse"]
    spec = read_spec(onnx.load_model(BUNDLED_MODEL))
    logits = (np.log(np.maximum(x, 1e-30)), np.log(np.maximum(y, 1e-30)))
    decoded, _ = decode_simcc(*logits, spec.split_ratio, spec.decode, spec.windows)
    np.testing.assert_allclose(coarse, decoded, atol=0.01)
    np.testing.assert_allclose(x.sum(-1), 1, atol=1e-4)


def test_no_simcc_graph_of_something_else(tmp_path: Path) -> None:
    other = yolox_stand_in(tmp_path / "y.onnx", {})
    with pytest.raises(ArtifactError, match="not a cfpose artifact"):
        write_simcc_graph(other, tmp_path / "out.onnx")


def adapter(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Rtm:
    """A stand-in for rtmlib.RTMPose, with its three steps."""

    def __init__(self, path: str, **options: Any) -> None:
        self.options = options
        self.session = types.SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])

    def preprocess(self, image: Any, box: Any) -> Any:
        return image, np.array(box[:2]), np.array(box[2:])

    def inference(self, crop: Any) -> Any:
        return crop

    def postprocess(self, outputs: Any, centre: Any, scale: Any) -> Any:
        return np.tile(centre, (1, 17, 1)), np.full((1, 17), 0.5)


def test_the_rtmlib_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "simcc.onnx"
    write_simcc_graph(BUNDLED_MODEL, path)
    monkeypatch.setitem(sys.modules, "rtmlib", types.SimpleNamespace(RTMPose=Rtm))
    module = adapter("rtmlib_pose")
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "0.1")
    model = module.open_model(str(path), device="cpu", threads=1)
    assert "score_unit" not in model.pose.options
    assert model.pose.options["mean"] is None  # the graph normalises itself
    width, height = model.pose.options["model_input_size"]
    assert height > width
    xy, scores = model.predict(
        np.zeros((50, 50, 3), np.uint8), np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    )
    np.testing.assert_array_equal(xy[:, 0], [[1, 2], [5, 6]])
    np.testing.assert_array_equal(scores, np.full((2, 17), 0.5))
    assert set(model.spans_ms) == {"crop", "infer", "post"}
    path.with_suffix(".json").unlink()  # raw peaks, which may exceed 1
    raw = module.open_model(str(path), device="cpu", threads=1)
    _, scores = raw.predict(np.zeros((50, 50, 3), np.uint8), np.array([[1, 2, 3, 4]]))
    np.testing.assert_array_equal(scores, np.full((1, 17), 0.5 / 16))
    assert model.facts["versions"] == {"rtmlib": "0.1", "onnxruntime": "0.1"}


class Tensor:
    """What ultralytics returns: on a device, until asked for."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values, dtype=np.float32)

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> Any:
        return self.values


def test_the_ultralytics_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Yolo:
        def __init__(self, path: str) -> None:
            asked["path"] = path

        def predict(self, image: Any, **options: Any) -> list[Any]:
            asked.update(options)
            space = types.SimpleNamespace
            return [
                space(
                    speed={"preprocess": 1.0, "inference": 2.0, "postprocess": 3.0},
                    keypoints=space(data=Tensor(np.full((2, 17, 3), 0.25))),
                    boxes=space(xyxy=Tensor([[0, 0, 9, 9]] * 2), conf=Tensor([0.5, 0.25])),
                )
            ]

    monkeypatch.setitem(sys.modules, "ultralytics", types.SimpleNamespace(YOLO=Yolo))
    module = adapter("ultralytics_pose")
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "8")
    model = module.open_model("yolo.pt", device="cpu", threads=0)
    assert model.one_stage
    xy, scores, boxes, box_scores = model.predict(np.zeros((9, 9, 3), np.uint8), None)
    assert (xy.shape, scores.shape, boxes.shape, box_scores.shape) == (
        (2, 17, 2), (2, 17), (2, 4), (2,),
    )  # fmt: skip
    assert model.spans_ms == {"crop": 1.0, "infer": 2.0, "post": 3.0}
    assert (asked["path"], asked["conf"], asked["device"]) == ("yolo.pt", 0.001, "cpu")


def test_the_mediapipe_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of the widened box, which is cut at the border, and RGB."""
    space = types.SimpleNamespace
    asked: dict[str, Any] = {}

    class Pose:
        def __init__(self, **options: Any) -> None:
            asked.update(options)

        def process(self, picture: Any) -> Any:
            asked["picture"] = picture
            if picture[0, 0, 0] == 0:  # no red: nobody
                return space(pose_landmarks=None)
            points = [space(x=0.5, y=n / 100, visibility=n / 30) for n in range(33)]
            return space(pose_landmarks=space(landmark=points))

    folder = tmp_path / "modules" / "pose_landmark"
    folder.mkdir(parents=True)
    (folder / "pose_landmark_full.tflite").write_bytes(b"model")
    stand_in = types.ModuleType("mediapipe")
    stand_in.__file__ = str(tmp_path / "__init__.py")
    stand_in.solutions = space(pose=space(Pose=Pose))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mediapipe", stand_in)
    module = adapter("mediapipe_pose")
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "0.10")
    path = tmp_path / "pose_landmark_full.tflite"
    path.write_bytes(b"another")
    with pytest.raises(ValueError, match="is not a pose model of the installed mediapipe"):
        module.open_model(str(path), device="cpu", threads=1)
    path.write_bytes(b"model")
    model = module.open_model(str(path), device="cpu", threads=1)
    assert (asked["model_complexity"], asked["static_image_mode"]) == (1, True)
    photo = np.zeros((100, 200, 3), np.uint8)
    photo[:, :100, 2] = 255
    xy, scores = model.predict(photo, np.array([[-8, 10, 72, 90], [110, 10, 190, 90]]))
    # 100 px wide around (32, 50), from 0 on: 82 x 100
    assert asked["picture"].shape == (100, 100, 3)
    np.testing.assert_allclose(xy[0][:, 0], 0.5 * 82 - 0.5)
    np.testing.assert_allclose(xy[0][5, 1], 11 - 0.5)  # the left shoulder, BlazePose's point 11
    np.testing.assert_allclose(xy[0][16, 1], 28 - 0.5)
    assert scores[0][:2].tolist() == [0, pytest.approx(2 / 30)]
    np.testing.assert_array_equal(xy[1], [[150, 50]] * 17)
    assert not scores[1].any()


def test_a_peers_environment_is_made_by_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        ran.append(command)
        code = int(command[-1] == "ultralytics")
        return subprocess.CompletedProcess(command, code, "", "no such host")

    monkeypatch.setattr(peer_commands.venv, "create", lambda folder, with_pip: None)
    monkeypatch.setattr(peer_commands.subprocess, "run", run)
    assert main(["peers", "install", "rtmlib", str(tmp_path / "env")]) == 0
    python = capsys.readouterr().out.strip()
    assert python.startswith(str(tmp_path / "env"))
    assert {command[0] for command in ran} == {python}
    assert ran[-1][-2:] == ["--no-deps", "rtmlib"]
    with pytest.raises(BackendError, match=r"ultralytics cannot be installed: no such host"):
        main(["peers", "install", "ultralytics", str(tmp_path / "env")])
