"""Tiny ONNX models that keep the artifact contract, built node by node, for tests of the runtime.

The pose model points every joint at the brightest pixel of its crop: a known function of the crop,
so a wrong affine, batch order or chunk shows at once. The finder answers with constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import FINDER_KEY, SPEC_KEY, FinderSpec, ModelSpec

SPEC = ModelSpec(name="brightest", skeleton=COCO_17, size_wh=(48, 64))
FINDER = FinderSpec(name="constant", size_wh=(64, 64), threshold=0.5, nms_iou=0.5)


def save_pose_model(
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    spec: ModelSpec = SPEC,
    covariance: float | None = None,
    scale: float = 1.0,
) -> Path:
    """Joints = (x, y) of the brightest pixel × `scale`, confidence = its brightness / 255.

    `covariance`, if given, is the variance in x; the variance in y is twice that.
    """
    width, joints = spec.size_wh[0], len(spec.skeleton)
    nodes = [
        helper.make_node("Cast", ["crops"], ["bgr"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["bgr", "last"], ["grey"], keepdims=0),
        helper.make_node("Reshape", ["grey", "flat_shape"], ["flat"]),
        helper.make_node("ArgMax", ["flat"], ["at"], axis=1, keepdims=1),
        helper.make_node("Mod", ["at", "width"], ["x"]),
        helper.make_node("Div", ["at", "width"], ["y"]),
        helper.make_node("Concat", ["x", "y"], ["xy"], axis=1),
        helper.make_node("Cast", ["xy"], ["point"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["point", "scale"], ["scaled"]),
        helper.make_node("Unsqueeze", ["scaled", "one"], ["single"]),
        helper.make_node("Tile", ["single", "repeats"], ["keypoints"]),
        helper.make_node("Identity", ["keypoints"], ["coarse"]),
        helper.make_node("ReduceMax", ["flat", "one"], ["peak"], keepdims=1),
        helper.make_node("Div", ["peak", "white"], ["bright"]),
        helper.make_node("Tile", ["bright", "repeats2"], ["confidence"]),
    ]
    constants = {
        "last": np.array([3]),
        "flat_shape": np.array([0, spec.size_wh[0] * spec.size_wh[1]]),
        "width": np.array([[width]]),
        "one": np.array([1]),
        "repeats": np.array([1, joints, 1]),
        "repeats2": np.array([1, joints]),
        "scale": np.array([scale], dtype=np.float32),
        "white": np.array([255.0], dtype=np.float32),
    }
    outputs = {
        "keypoints": ["n", joints, 2],
        "confidence": ["n", joints],
        "coarse": ["n", joints, 2],
    }
    if covariance is not None:
        nodes += [
            helper.make_node("Unsqueeze", ["keypoints", "last"], ["column"]),
            helper.make_node("Mul", ["column", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "matrix"], ["covariance"]),
        ]
        constants["zero"] = np.zeros(1, np.float32)
        constants["matrix"] = np.diag([covariance, 2 * covariance]).astype(np.float32)
        outputs["covariance"] = ["n", joints, 2, 2]
    return _save(
        path,
        nodes,
        {"crops": (TensorProto.UINT8, ["n", spec.size_wh[1], width, 3])},
        outputs,
        constants,
        {SPEC_KEY: spec.to_json()} if metadata is None else metadata,
    )


def save_finder(
    path: Path,
    boxes: Sequence[Sequence[float]],
    scores: Sequence[float],
    *,
    metadata: Mapping[str, str] | None = None,
    spec: FinderSpec = FINDER,
) -> Path:
    """Always these boxes, in letterbox pixels, whatever the picture."""
    nodes = [
        helper.make_node("Identity", ["all_boxes"], ["boxes"]),
        helper.make_node("Identity", ["all_scores"], ["scores"]),
        helper.make_node("Identity", ["images"], ["unused"]),
    ]
    constants = {
        "all_boxes": np.array(boxes, np.float32).reshape(1, -1, 4),
        "all_scores": np.array(scores, np.float32).reshape(1, -1),
    }
    return _save(
        path,
        nodes,
        {"images": (TensorProto.UINT8, ["n", spec.size_wh[1], spec.size_wh[0], 3])},
        {"boxes": [1, len(boxes), 4], "scores": [1, len(boxes)]},
        constants,
        {FINDER_KEY: spec.to_json()} if metadata is None else metadata,
    )


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[int | str]]],
    outputs: Mapping[str, Sequence[int | str]],
    constants: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> Path:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in outputs.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path
