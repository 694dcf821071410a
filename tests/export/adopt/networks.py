"""Small foreign networks with answers that one can compute by hand.

Each reads a joint off one colour channel: joint 0 off red, 1 off green, 2 off blue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEIGHT, STRIDE = 48, 64, 4
JOINTS = ("nose", "left_hand", "right_hand")
MEAN, STD = (10.0, 20.0, 30.0), (255.0, 254.0, 253.0)
NAMED = ["--mean", "10", "20", "30", "--std", "255", "254", "253", "--colour", "rgb",
         "--box-scale", "1.25", "--min-confidence", "0.05"]  # fmt: skip


def write_skeleton(folder: Path) -> Path:
    """The JSON file of the three joints."""
    path = folder / "three.json"
    record = {"keypoints": JOINTS, "limbs": [[0, 1], [0, 2]], "flip_pairs": [[1, 2]],
              "oks_sigmas": [0.03, 0.06, 0.06]}  # fmt: skip
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def model_of(
    nodes: Sequence[onnx.NodeProto],
    outputs: Mapping[str, Sequence[int | str]],
    constants: Mapping[str, NDArray[Any]] | None = None,
    *,
    entry: Sequence[int | str] = ("N", 3, HEIGHT, WIDTH),
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    out_kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A graph with the input `image`."""
    graph = helper.make_graph(
        list(nodes),
        "foreign",
        [helper.make_tensor_value_info("image", kind, entry)],
        [helper.make_tensor_value_info(n, out_kind, s) for n, s in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def pooling(source: str, target: str) -> onnx.NodeProto:
    """(…, H, W) → (…, H/4, W/4), as a convolution, so that the network has a weighted node."""
    return helper.make_node(
        "Conv", [source, "pool"], [target], kernel_shape=[STRIDE] * 2, strides=[STRIDE] * 2, group=3
    )


POOL = {"pool": np.full((3, 1, STRIDE, STRIDE), 1 / STRIDE**2, np.float32)}


def heatmap_network(batch: int | str = "N", opset: int = 17) -> onnx.ModelProto:
    """`heatmaps` [N, 3, 16, 12]: each colour, shrunk four times."""
    shape = (batch, 3, HEIGHT // STRIDE, WIDTH // STRIDE)
    entry = (batch, 3, HEIGHT, WIDTH)
    nodes = [pooling("image", "heatmaps")]
    return model_of(nodes, {"heatmaps": shape}, POOL, entry=entry, opset=opset)


def simcc_network(softmax: bool = False) -> onnx.ModelProto:
    """`simcc_x` [N, 3, 96], `simcc_y` [N, 3, 128]: the colour's sums along the other axis."""
    constants: dict[str, NDArray[Any]] = {}
    nodes = []
    for axis, length, summed in (("x", WIDTH, 2), ("y", HEIGHT, 3)):
        spread = np.zeros((length, 2 * length), np.float32)
        spread[np.arange(length), 2 * np.arange(length)] = 1
        spread[np.arange(length), 2 * np.arange(length) + 1] = 0.5
        spread[np.arange(1, length), 2 * np.arange(length - 1) + 1] = 0.5
        constants |= {f"spread_{axis}": spread, f"axis_{axis}": np.array([summed])}
        constants["small"] = np.array(0.1, np.float32)
        last = "raw" if softmax else "simcc"
        nodes += [
            helper.make_node("ReduceSum", ["image", f"axis_{axis}"], [f"sum_{axis}"], keepdims=0),
            helper.make_node("MatMul", [f"sum_{axis}", f"spread_{axis}"], [f"wide_{axis}"]),
            helper.make_node("Mul", [f"wide_{axis}", "small"], [f"{last}_{axis}"]),
        ]
        if softmax:
            nodes.append(helper.make_node("Softmax", [f"raw_{axis}"], [f"simcc_{axis}"], axis=2))
    outputs = {"simcc_x": ("N", 3, 2 * WIDTH), "simcc_y": ("N", 3, 2 * HEIGHT)}
    return model_of(nodes, outputs, constants)


def movenet_like(batch: int = 1, side: int = 64) -> onnx.ModelProto:
    """`out` [B, 1, 17, 3] of int32 [B, S, S, 3] RGB: y, x and score from the mean of a colour.

    The Reshape names the batch, as exporters of fixed batch do.
    """
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real", "sides"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "mix"], ["rows"]),
        helper.make_node("Reshape", ["rows", "shape"], ["out"]),
    ]
    mix = np.random.default_rng(3).uniform(0.1, 1, (3, 51)) / 255 / 3
    constants = {
        "sides": np.array([1, 2]), "mix": mix.astype(np.float32),
        "shape": np.array([batch, 1, 17, 3]),
    }  # fmt: skip
    entry = (batch, side, side, 3)
    return model_of(
        nodes, {"out": (batch, 1, 17, 3)}, constants, entry=entry, kind=TensorProto.INT32, opset=18
    )


def blobs(count: int = 4, seed: int = 0) -> NDArray[np.uint8]:
    """(count, H, W, 3) BGR crops with one soft blob a colour, some of them at the border."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    crops = np.zeros((count, HEIGHT, WIDTH, 3), np.uint8)
    for n in range(count):
        for colour in range(3):
            cx, cy = draw.uniform(0, WIDTH), draw.uniform(0, HEIGHT)
            blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 7.0**2))
            crops[n, :, :, colour] = np.round(255 * blob)
    return crops


def write_photos(folder: Path) -> Path:
    """A folder of one photo of blobs and its people.json, for the proof."""
    tall = np.concatenate(list(blobs(6, seed=5)), axis=1)
    cv2.imwrite(str(folder / "blobs.png"), tall)
    boxes = [[WIDTH * n + 2, 3, WIDTH * n + 40, HEIGHT - 3] for n in range(6)]
    (folder / "people.json").write_text(json.dumps({"blobs.png": boxes}), encoding="utf-8")
    return folder
