"""One-stage YOLO-pose graphs of known answers, alone and through the bench's door."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cfpose_bench.models.open import open_model, parse_name
from cfpose_bench.peers.yolo_pose import YoloPose
from cfpose_sdk.errors import ArtifactError, InputError

SIDE, CELLS = 64, 84
PEOPLE = np.array([[4, 4, 20, 60], [30, 10, 50, 40], [5, 4, 21, 60]], np.float64)  # input pixels
SCORES = np.array([0.9, 0.8, 0.7])
IMAGE = np.zeros((128, 64, 3), np.uint8)  # letterboxed at scale 0.5
JOINTS = np.random.default_rng(0).uniform(5, 55, (3, 17, 2))
SURE = np.random.default_rng(1).uniform(0, 1, (3, 17))


def graph(folder: Path, output: NDArray[np.float64]) -> Path:
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["value", "nothing"], ["output0"]),
    ]
    constants = {"zero": np.array(0, np.float32), "value": output.astype(np.float32)}
    body = helper.make_graph(
        nodes, "constant",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, SIDE, SIDE))],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, output.shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path = folder / "yolo-pose.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def raw() -> NDArray[np.float64]:
    """[1, 56, 84]: the people at three cells, the third a weaker repetition of the first."""
    out = np.zeros((1, 56, CELLS))
    at = [7, 30, 50]
    out[0, :2, at] = (PEOPLE[:, :2] + PEOPLE[:, 2:]) / 2
    out[0, 2:4, at] = PEOPLE[:, 2:] - PEOPLE[:, :2]
    out[0, 4, at] = SCORES
    out[0, 5:, at] = np.concatenate([JOINTS, SURE[..., None]], axis=2).reshape(3, -1)
    return out


def end_to_end() -> NDArray[np.float64]:
    out = np.zeros((1, 300, 57))
    joints = np.concatenate([JOINTS, SURE[..., None]], axis=2).reshape(3, -1)
    out[0, :3] = np.column_stack([PEOPLE, SCORES, np.zeros(3), joints])
    return out


def test_raw_output(tmp_path: Path) -> None:
    poses = YoloPose(graph(tmp_path, raw()), device="cpu").predict(IMAGE)
    assert len(poses) == 2
    np.testing.assert_allclose(poses.xy, JOINTS[:2] * 2, rtol=1e-5)
    np.testing.assert_allclose(poses.confidence, SURE[:2], rtol=1e-5)
    np.testing.assert_allclose(poses.box_scores, SCORES[:2], rtol=1e-5)
    # the second person's right edge, 100 px, lies outside of the 64 px wide frame
    np.testing.assert_allclose(poses.boxes, [[8, 8, 40, 120], [60, 20, 64, 80]], atol=1e-4)


def test_end_to_end_output_is_not_suppressed_again(tmp_path: Path) -> None:
    poses = YoloPose(graph(tmp_path, end_to_end()), device="cpu").predict(IMAGE)
    assert len(poses) == 3
    np.testing.assert_allclose(poses.xy, JOINTS * 2, rtol=1e-5)


def test_the_order_of_channels(tmp_path: Path) -> None:
    """A red photo reaches the network as a red plane."""
    path = graph(tmp_path, raw())
    model = onnx.load(path)
    pick = numpy_helper.from_array(np.array([1.0, 0, 0], np.float32).reshape(1, 3, 1, 1), "pick")
    model.graph.initializer.append(pick)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3]), "axes"))
    del model.graph.node[:]
    model.graph.node.extend([
        helper.make_node("Mul", ["images", "pick"], ["red"]),
        helper.make_node("ReduceMax", ["red", "axes"], ["most"], keepdims=1),
        helper.make_node("Squeeze", ["most", "axes"], ["flat"]),
        helper.make_node("Mul", ["value", "flat"], ["output0"]),
    ])  # fmt: skip
    path.write_bytes(model.SerializeToString())
    yolo = YoloPose(path, device="cpu")
    red, blue = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    red[..., 2] = blue[..., 0] = 255
    assert len(yolo.predict(red)) == 2
    assert yolo.predict(red).box_scores[0] == pytest.approx(0.9)
    assert yolo.predict(blue).box_scores[:1].tolist() != pytest.approx([0.9])


def test_another_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"\[1, 84, 84\].*expected \[1, 56, M\]"):
        YoloPose(graph(tmp_path, np.zeros((1, 84, CELLS))), device="cpu").predict(IMAGE)


def test_through_the_bench(tmp_path: Path) -> None:
    name = parse_name(f"yolopose:{graph(tmp_path, raw())}")
    candidate = open_model(name, device="cpu")
    assert candidate.facts.one_stage
    assert candidate.facts.is_peer
    assert name.label == "yolo-pose"
    assert len(candidate.model.predict(IMAGE, boxes=[[1, 2, 3, 4]])) == 2
    candidate.close()
    with pytest.raises(InputError, match="no flip test"):
        open_model(name, device="cpu", flip_test=True)
