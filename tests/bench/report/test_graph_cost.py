"""MACs and parameters against counts by hand, and against the published figure of HRNet-W32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from cfpose_bench.report.graph_cost import graph_cost
from cfpose_sdk.errors import ArtifactError


def weight(name: str, *shape: int) -> Any:
    """A float tensor by shape alone: nothing reads its numbers."""
    return onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)


def model(nodes: list[Any], inputs: dict[str, list[Any]], weights: list[Any]) -> Any:
    entries = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    outputs = [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", entries, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


node = helper.make_node
CASES = {
    # output 5 x 8 x 6, each a sum over 3 channels and a 3 x 3 kernel
    "conv": (
        node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2]),
        {"x": ["N", 3, 16, 12]}, [("w", 5, 3, 3, 3), ("b", 5)], 5 * 8 * 6 * 27, 140,
    ),
    "depthwise": (
        node("Conv", ["x", "w"], ["y"], group=4, pads=[1, 1, 1, 1]),
        {"x": ["N", 4, 7, 9]}, [("w", 4, 1, 3, 3)], 4 * 7 * 9 * 9, 36,
    ),
    # every input number meets 6 output channels x 2 x 2
    "transposed": (
        node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
        {"x": ["N", 4, 5, 3]}, [("w", 4, 6, 2, 2)], 4 * 5 * 3 * 24, 96,
    ),
    "gemm": (
        node("Gemm", ["x", "w"], ["y"], transB=1), {"x": ["N", 10]}, [("w", 7, 10)], 70, 70,
    ),
    "matmul": (
        node("MatMul", ["x", "w"], ["y"]), {"x": ["N", 17, 12]}, [("w", 12, 5)], 17 * 12 * 5, 60,
    ),
    "broadcast": (
        node("MatMul", ["w", "x"], ["y"]), {"x": ["N", 17, 12]}, [("w", 17, 17)], 17 * 17 * 12, 289,
    ),
    "einsum": (
        node("Einsum", ["x", "w"], ["y"], equation="nkc,kl->nlc"),
        {"x": ["N", 17, 12]}, [("w", 17, 9)], 17 * 9 * 12, 153,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_counts_by_hand(case: str) -> None:
    one, inputs, weights, macs, params = CASES[case]
    graph = model([one], inputs, [weight(*w) for w in weights])
    found = graph_cost(graph)
    assert (found.macs, found.params) == (macs, params)
    assert graph_cost(graph, batch=3).macs == 3 * macs


def test_shapes_pass_through_what_is_not_counted() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"]),
        node("Reshape", ["b", "shape"], ["c"]),
        node("Gemm", ["c", "v"], ["y"]),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 5 * 64])
    graph = model(
        nodes, {"x": ["N", 3, 8, 8]}, [weight("w", 5, 3, 3, 3), weight("v", 320, 2), shape]
    )
    found = graph_cost(graph)
    assert dict(found.by_kind) == {"Conv": 5 * 64 * 27, "Gemm": 640}
    assert found.params == 135 + 640  # the shape is no parameter


def test_an_unknown_shape_is_refused_and_a_broken_file_too(tmp_path: Path) -> None:
    graph = model([node("MatMul", ["x", "w"], ["y"])], {"x": None}, [weight("w", 3, 4)])  # type: ignore[dict-item]
    with pytest.raises(ArtifactError, match=r"shape of 'x'.*MatMul"):
        graph_cost(graph)
    (tmp_path / "broken.onnx").write_bytes(b"\x0f\x0f\x0f")
    with pytest.raises(ArtifactError, match="cannot be read"):
        graph_cost(tmp_path / "broken.onnx")


class HRNet:
    """HRNet's graph, node by node, as its paper and configuration file lay it out."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def conv(self, x: str, cin: int, cout: int, kernel: int = 3, stride: int = 1) -> str:
        n = f"t{len(self.nodes)}"
        self.weights.append(weight(f"{n}.w", cout, cin, kernel, kernel))
        pads, strides = [kernel // 2] * 4, [stride] * 2
        self.nodes.append(node("Conv", [x, f"{n}.w"], [n], pads=pads, strides=strides))
        return n

    def add(self, parts: list[str]) -> str:
        n = f"t{len(self.nodes)}"
        self.nodes.append(node("Sum", parts, [n]))
        return n

    def bottleneck(self, x: str, cin: int) -> str:
        y = self.conv(self.conv(self.conv(x, cin, 64, 1), 64, 64), 64, 256, 1)
        return self.add([y, x if cin == 256 else self.conv(x, cin, 256, 1)])

    def branch(self, x: str, width: int) -> str:
        for _ in range(4):
            x = self.add([self.conv(self.conv(x, width, width), width, width), x])
        return x

    def up(self, x: str, factor: int) -> str:
        n, scales = f"t{len(self.nodes)}", f"s{len(self.nodes)}"
        values = [1.0, 1.0, float(factor), float(factor)]
        self.weights.append(helper.make_tensor(scales, TensorProto.FLOAT, [4], values))
        self.nodes.append(node("Resize", [x, "", scales], [n], mode="nearest"))
        return n

    def module(self, xs: list[str], widths: list[int], outputs: int) -> list[str]:
        xs = [self.branch(x, w) for x, w in zip(xs, widths, strict=True)]
        fused = []
        for i in range(outputs):
            parts = []
            for j, x in enumerate(xs):
                if j > i:
                    x = self.up(self.conv(x, widths[j], widths[i], 1), 2 ** (j - i))
                for step in range(i - j):
                    x = self.conv(x, widths[j], widths[i] if step == i - j - 1 else widths[j], 3, 2)
                parts.append(x)
            fused.append(self.add(parts) if len(parts) > 1 else parts[0])
        return fused

    def build(self, width: int) -> Any:
        x = self.conv(self.conv("x", 3, 64, 3, 2), 64, 64, 3, 2)
        for n in range(4):
            x = self.bottleneck(x, 64 if n == 0 else 256)
        widths = [width]
        xs = [self.conv(x, 256, width)]
        source, cin = x, 256
        for modules in (1, 4, 3):
            widths.append(2 * widths[-1])
            xs.append(self.conv(source, cin, widths[-1], 3, 2))
            for m in range(modules):
                last = modules == 3 and m == 2
                xs = self.module(xs, widths, 1 if last else len(widths))
            source, cin = xs[-1], widths[-1]
        self.conv(xs[0], width, 17, 1)
        return model(self.nodes, {"x": ["N", 3, 256, 192]}, self.weights)


def test_hrnet_w32_costs_what_is_published() -> None:
    """28.5 M parameters and 7.1 GMACs (HRNet paper, 256 x 192; other counters say up to 7.7)."""
    found = graph_cost(HRNet().build(32))
    assert 7.05e9 < found.macs < 7.75e9
    assert 28.0e6 < found.params < 29.0e6


def test_a_quantised_kind_counts_too() -> None:
    quantised = model(
        [node("ConvInteger", ["x", "w"], ["y"])], {"x": ["N", 3, 4, 4]}, [weight("w", 2, 3, 1, 1)]
    )
    quantised.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    quantised.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    quantised.graph.initializer[0].data_type = TensorProto.UINT8
    assert graph_cost(quantised).macs == 2 * 16 * 3
