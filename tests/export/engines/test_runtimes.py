"""One file, several runtimes: the numbers agree within the bound of the precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cfpose_export.graph.rules import LOGITS, load_model, read_spec, with_outputs
from cfpose_export.precision.int8 import calibrate, quantise
from cfpose_export.precision.typed import lower
from cfpose_export.proof.compare import Values, compare_graphs, run_graph
from cfpose_export.proof.crops import ProofSet, read_hard
from cfpose_sdk.backends.openvino import shared_core
from cfpose_sdk.estimator import BUNDLED_MODEL

pytest.importorskip("openvino", reason="openvino is not installed")

# p99 px and mean OKS of the two runtimes' poses. fp16: both compute it in float32 on the CPU.
# int8: their kernels round sums differently, and unsure joints jump (20.7 px).
BOUNDS = {"fp32": (0.05, 0.9999), "fp16": (0.25, 0.999), "int8": (30.0, 0.98)}


def run_openvino(model: onnx.ModelProto, feeds: dict[str, Any], folder: Path) -> Values:
    path = folder / "model.onnx"
    onnx.save_model(model, path)
    core = shared_core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(feeds)
    return {output.get_any_name(): found[output] for output in compiled.outputs}


@pytest.fixture(scope="module")
def bundled() -> onnx.ModelProto:
    return load_model(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def proof(bundled: onnx.ModelProto) -> ProofSet:
    return read_hard(None, read_spec(bundled), 9)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_openvino_gives_what_onnxruntime_gives(
    bundled: onnx.ModelProto, proof: ProofSet, tmp_path: Path, precision: str
) -> None:
    graphs = {
        "fp32": lambda: bundled,
        "fp16": lambda: lower(bundled, "fp16"),
        "int8": lambda: quantise(bundled, calibrate(bundled, proof.crops)),
    }
    model = graphs[precision]()
    expected = run_graph(model, proof.crops, LOGITS)
    got = run_openvino(with_outputs(model, LOGITS), {"crops": proof.crops}, tmp_path)
    figures = compare_graphs("openvino", expected, got, proof, read_spec(model), 0.3)
    p99_px, oks = BOUNDS[precision]
    assert figures.joints > 100
    assert figures.nonfinite == 0
    assert figures.p99_px <= p99_px
    assert figures.oks_mean >= oks


def test_frame_coordinates_stay_float32_in_openvino(tmp_path: Path) -> None:
    """crop → frame near x = 3800, where fp16 has steps of 2 px."""

    def constant(name: str, values: list[float]) -> onnx.TensorProto:
        array: NDArray[np.float32] = np.array(values, np.float32)
        return numpy_helper.from_array(array, name)

    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["crop", "scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "corner"], ["frame"]),
        ],
        "to_frame",
        [helper.make_tensor_value_info("crop", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("frame", TensorProto.FLOAT, ["N", 2])],
        [constant("scale", [1.37, 1.37]), constant("corner", [3671.43, 1999.77])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    crop = np.random.default_rng(0).uniform(0, 192, (50, 2)).astype(np.float32)
    exact = crop.astype(np.float64) * 1.37 + [3671.43, 1999.77]
    got = run_openvino(model, {"crop": crop}, tmp_path)["frame"]
    assert exact[:, 0].max() > 3800
    np.testing.assert_allclose(got, exact, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize(("graph", "refined"), [("bundled", False), ("model", True)])
def test_the_parser_of_tensorrt_rtx_takes_it(
    request: pytest.FixtureRequest, graph: str, refined: bool, precision: str
) -> None:
    """Strongly typed, without a GPU: the parser builds the network and its types."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    plain = request.getfixturevalue(graph)
    model = (
        quantise(plain, calibrate(plain, read_hard(None, read_spec(plain), 9).crops))
        if precision == "int8"
        else lower(plain, precision)  # type: ignore[arg-type]
    )
    builder = rtx.Builder(rtx.Logger(rtx.Logger.ERROR))
    flag = 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = rtx.OnnxParser(network, rtx.Logger(rtx.Logger.ERROR))
    taken = parser.parse(model.SerializeToString())
    assert taken, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    convolutions = [layer for layer in layers if layer.type == rtx.LayerType.CONVOLUTION]
    backbone = {layer.get_output(0).dtype for layer in convolutions}
    low = {"fp16": rtx.DataType.HALF, "bf16": rtx.DataType.BF16}
    if precision in low:
        assert low[precision] in backbone
    lookups = [layer for layer in layers if layer.type == rtx.LayerType.GRID_SAMPLE]
    assert len(lookups) == (3 if refined else 0)
    assert all(layer.get_input(i).dtype == rtx.DataType.FLOAT for layer in lookups for i in (0, 1))
