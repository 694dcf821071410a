"""Typed graphs: which node has which type, what a cast may cost, and what stays float32."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cfpose_export.graph.rules import (
    LOGITS,
    POSE_OUTPUTS,
    SCOPES_KEY,
    check_graph,
    element_types,
    read_spec,
    write_spec,
)
from cfpose_export.precision.int8 import _is_quantised
from cfpose_export.precision.typed import ELEMENT, TypedPrecision, emulate, lower, plan, scope
from cfpose_export.proof.compare import run_graph
from cfpose_export.proof.crops import Crops, read_people
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import ModelSpec

PRECISIONS: tuple[TypedPrecision, ...] = ("fp16", "bf16")
FORMAT = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
SPEC = ModelSpec("small", COCO_17, (8, 8), license="test")


@pytest.fixture(scope="module")
def crops() -> Crops:
    return read_people(None, dataclasses.replace(SPEC, size_wh=(64, 96)), 6)


def small(weights: np.ndarray, module: str = "pose.backbone.conv") -> onnx.ModelProto:
    """(N, 4) float32 → MatMul in `module` → Sum over features outside of it."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
        helper.make_node("Relu", ["y"], ["r"], name="relu"),
        helper.make_node("Exp", ["r"], ["z"], name="exp"),
    ]
    nodes[0].metadata_props.add(key=SCOPES_KEY, value=str(["", module, "linear"]))
    nodes[1].metadata_props.add(key=SCOPES_KEY, value=str(["", "pose.backbone.relu", "relu"]))
    nodes[2].metadata_props.add(key=SCOPES_KEY, value=str(["", "refiner", "exp"]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", weights.shape[1]])],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    write_spec(model, SPEC)
    return model


@pytest.mark.parametrize("precision", PRECISIONS)
def test_types_by_scope(model: onnx.ModelProto, precision: TypedPrecision) -> None:
    """Backbone and head low, everything else as it was, and no operator with mixed inputs."""
    lowered = lower(model, precision)
    types = element_types(lowered)
    low, seen = ELEMENT[precision], {"low": 0, "GridSample": 0}
    for node in lowered.graph.node:
        if node.op_type == "Cast":
            continue
        parts = scope(node).split(".")
        kinds = {types[name] for name in (*node.input, *node.output) if name}
        if "backbone" in parts or "head" in parts:
            assert types[node.output[0]] == low, node.name
            seen["low"] += 1
        else:
            assert low not in kinds, node.name
        seen["GridSample"] += node.op_type == "GridSample"
    assert seen["low"] > 50
    assert seen["GridSample"] == 3
    assert {o.type.tensor_type.elem_type for o in lowered.graph.output} == {TensorProto.FLOAT}
    assert lowered.graph.input == model.graph.input
    check_graph(lowered, "crops", POSE_OUTPUTS)
    assert all(types[name] == TensorProto.FLOAT for name in LOGITS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_spec_says_it_and_the_proof_is_gone(
    model: onnx.ModelProto, precision: TypedPrecision
) -> None:
    before = model.SerializeToString(deterministic=True)
    write_spec(model, dataclasses.replace(read_spec(model), gate={"max_px": 0.01}))
    lowered = lower(model, precision)
    spec = read_spec(lowered)
    assert (spec.precision, spec.gate) == (precision, {})
    again = lower(model, precision)
    assert again.SerializeToString(deterministic=True) == lowered.SerializeToString(
        deterministic=True
    )
    write_spec(model, dataclasses.replace(read_spec(model), gate={}))
    assert model.SerializeToString(deterministic=True) == before  # the caller's graph


def test_weights_take_half_the_bytes(model: onnx.ModelProto) -> None:
    names = {t.name for t in model.graph.initializer if ".backbone." in t.name}
    halves = [t for t in lower(model, "fp16").graph.initializer if ".backbone." in t.name]
    assert len(halves) >= len(names)
    assert {t.data_type for t in halves if len(t.dims) == 4} == {TensorProto.FLOAT16}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_rounded_graph_rounds_as_numpy_does(precision: TypedPrecision) -> None:
    """Against a float32 product of rounded operands, rounded: two values, no tolerance."""
    draw = np.random.default_rng(0)
    weights = draw.normal(size=(4, 5)).astype(np.float32)
    x = draw.normal(size=(3, 4)).astype(np.float32)
    rounded = emulate(small(weights), precision)
    import onnxruntime

    session = onnxruntime.InferenceSession(
        rounded.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    kind = FORMAT[precision]

    def low(array: np.ndarray) -> np.ndarray:
        return array.astype(kind).astype(np.float32)

    exact = low(x).astype(np.float64) @ low(weights).astype(np.float64)
    expected = np.exp(np.maximum(low(exact.astype(np.float32)), 0))
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-6)


def test_an_fp16_overflow_shows_in_the_rounded_graph_alone(
    model: onnx.ModelProto, crops: Crops
) -> None:
    """onnxruntime's CPU computes fp16 nodes in float32: it alone would not see an overflow."""
    _scale(model, 1e6)
    exact = run_graph(model, crops, LOGITS)
    assert all(np.isfinite(value).all() for value in exact.values())
    shown = run_graph(emulate(model, "fp16"), crops, LOGITS)
    assert not np.isfinite(shown["x_logits"]).all()


@pytest.mark.parametrize(
    ("value", "precision", "reason"),
    [(1e5, "fp16", "beyond fp16"), (1e-6, "fp16", "too small"), (1e5, "bf16", None)],
)
def test_constants_that_do_not_fit_stay(
    value: float, precision: TypedPrecision, reason: str | None
) -> None:
    """Never an infinity, never a weight that has lost its digits."""
    draw = np.random.default_rng(1).uniform(0.5, 1, (4, 5))
    model = small(draw * value)
    chosen = plan(model, precision)
    if reason is None:
        assert not chosen.unfit
        assert 0 in chosen.low
    else:
        assert reason in chosen.unfit["pose.backbone.conv"]
        assert chosen.low == {1}
    for tensor in lower(model, precision).graph.initializer:
        low = tensor.data_type == TensorProto.FLOAT16
        assert np.isfinite(numpy_helper.to_array(tensor).astype(np.float64)).all()
        assert not (low and reason)


def test_kept_modules_stay_float32(model: onnx.ModelProto) -> None:
    for keep, inside in (("pose.head", True), ("pose.head.", False)):
        types = element_types(lower(model, "fp16", [keep]))
        for node in lower(model, "fp16", [keep]).graph.node:
            if scope(node) == "pose.head":
                assert types[node.output[0]] == TensorProto.FLOAT
            if scope(node) == "pose.head.final_layer":
                assert (types[node.output[0]] == TensorProto.FLOAT) is inside


def test_wrong_requests(model: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="nothing in the graph is called"):
        lower(model, "fp16", ["pose.hand"])
    with pytest.raises(InputError, match="precision must be one of"):
        lower(model, "fp8")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="no node would run in fp16"):
        lower(model, "fp16", ["pose"])
    with pytest.raises(ExportError, match="no node would run in fp16"):
        lower(small(np.ones((4, 5)) * 1e6), "fp16", ["relu"])


def test_the_sampler_of_a_frame_graph_stays(model: onnx.ModelProto) -> None:
    sampled = small(np.ones((4, 5)), "sampler.backbone")
    assert plan(sampled, "fp16").low == {1}


def _scale(model: onnx.ModelProto, factor: float) -> None:
    """Make the values after the backbone's first convolution larger and undo it in the second."""
    first, second = [n for n in model.graph.node if n.op_type == "Conv"][:2]
    tensors = {t.name: t for t in model.graph.initializer}
    for name, by in (
        (first.input[1], factor),
        (first.input[2], factor),
        (second.input[1], 1 / factor),
    ):
        array = numpy_helper.to_array(tensors[name]) * np.float32(by)
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))


def test_what_bf16_leaves_alone() -> None:
    """The depthwise convolution behind a MobileNet's stem is float32 in bf16, and low in fp16."""
    model = small(np.ones((4, 2)), "pose.backbone.first.depthwise")
    product = [n.name for n in model.graph.node].index("product")
    assert product in plan(model, "fp16").low
    assert product not in plan(model, "bf16").low
    other = small(np.ones((4, 2)), "pose.backbone.stages.0.0.depthwise")
    assert product in plan(other, "bf16").low


def test_what_int8_leaves_alone() -> None:
    """Stems, and of MobileNet the first stage and the layer that reads it."""
    chosen = {
        name
        for name in (
            "stem", "first.project", "stages.0.1.expand", "stages.1.0.expand",
            "stages.1.0.depthwise", "stages.1.1.expand", "merge4.project", "layer1.0", "layer2.0",
        )
        if _is_quantised(f"pose.backbone.{name}")
    }  # fmt: skip
    assert chosen == {"stages.1.0.depthwise", "stages.1.1.expand", "merge4.project", "layer2.0"}
    assert not _is_quantised("pose.head.heat.out")
