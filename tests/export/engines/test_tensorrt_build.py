"""TensorRT-RTX's own parser and builder on our graphs. Needs no GPU; says nothing of speed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cfpose_export.engines.options import BuildOptions, profiles_of
from cfpose_export.engines.tensorrt import (
    Built,
    achieved,
    build,
    check_buildable,
    check_network,
    layers,
    parse,
)
from cfpose_export.graph.rules import element_types, load_model, read_spec, whole_letterboxes
from cfpose_sdk.backends.tensorrt.library import choose_flavour, open_log
from cfpose_sdk.detectors.base import BUNDLED_FINDER
from cfpose_sdk.errors import ExportError, InputError, MissingDependencyError
from cfpose_sdk.estimator import BUNDLED_MODEL

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")

Graph = Callable[[pytest.FixtureRequest], onnx.ModelProto]


def _has(module: str, *names: str) -> bool:
    if importlib.util.find_spec(f"cfpose_export.{module}") is None:
        return False
    found = importlib.import_module(f"cfpose_export.{module}")
    return all(hasattr(found, name) for name in names)


def _quantise(request: pytest.FixtureRequest) -> onnx.ModelProto:
    module = importlib.import_module("cfpose_export.precision.int8")
    model = request.getfixturevalue("model")
    crops = np.random.default_rng(0).integers(0, 256, (4, 96, 64, 3), np.uint8)
    quantised: onnx.ModelProto = module.quantise(model, module.calibrate(model, crops))
    return quantised


def variants() -> dict[str, Graph]:
    """Every kind of graph that this version can write, by name."""
    found: dict[str, Graph] = {
        "fp32": lambda request: request.getfixturevalue("model"),
        "argmax": lambda request: request.getfixturevalue("tiny_argmax")[1],
        "bundled": lambda request: load_model(BUNDLED_MODEL),
        "finder": lambda request: load_model(BUNDLED_FINDER),
    }
    if _has("precision", "lower"):
        lower = importlib.import_module("cfpose_export.precision.typed").lower
        for kind in ("fp16", "bf16"):
            found[kind] = lambda request, k=kind: lower(request.getfixturevalue("model"), k)
    if _has("quantise", "quantise", "calibrate"):
        found["int8"] = _quantise
    if _has("frame", "frame_graph"):
        wrap = importlib.import_module("cfpose_export.graph.frame_input").frame_graph
        found["frame"] = lambda request: wrap(request.getfixturevalue("model"))
    return found


BUILT: dict[str, tuple[onnx.ModelProto, Built]] = {}


@pytest.fixture(params=variants())
def variant(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, Built]:
    """A graph and the engine that was built from it."""
    name = request.param
    if name not in BUILT:
        graph = variants()[name](request)
        # a short build: one GPU family instead of all, and few profiles
        options = BuildOptions(
            targets=("8.9",), level=0, people=(1, 8), frames=((640, 480), (1280, 720))
        )
        BUILT[name] = whole_letterboxes(graph), build(graph, "rtx", options)
    return BUILT[name]


def _network(model: onnx.ModelProto) -> tuple[Any, Any]:
    builder = trt.Builder(open_log(trt))
    return builder, parse(trt, builder, model)


def test_ends_are_the_contract(variant: tuple[onnx.ModelProto, Built]) -> None:
    graph, built = variant
    assert list(built.inputs) == [value.name for value in graph.graph.input]
    assert list(built.outputs) == [value.name for value in graph.graph.output]
    for value in (*graph.graph.input, *graph.graph.output):
        tensor = value.type.tensor_type
        kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        text = (built.inputs | built.outputs)[value.name]  # type: ignore[operator]
        assert text.split()[0] == kind
        sizes = text.partition("[")[2].rstrip("]").split(", ")
        known = [str(d.dim_value) for d in tensor.shape.dim if not d.dim_param]
        assert [s for s in sizes if s.isdecimal()] == known, value.name
    assert all(text.startswith("float32") for text in built.outputs.values())


def test_the_profile_is_the_one_asked_for(variant: tuple[onnx.ModelProto, Built]) -> None:
    graph, built = variant
    names = {value.name for value in graph.graph.input}
    if names == {"images"}:  # one picture a run
        assert built.profiles == ({"images": ((1, 480, 480, 3),) * 3},)
        return
    assert len(built.profiles) == (3 if "frame" in names else 2)
    for profile in built.profiles:
        assert profile.keys() == names
        for shapes in profile.values():
            assert np.all(np.diff(np.array(shapes), axis=0) >= 0)
    people = "boxes" if "frame" in names else "crops"
    counts = [[shape[0] for shape in profile[people]] for profile in built.profiles]
    assert counts[:2] == [[1, 1, 1], [1, 8, 8]]


def test_profiles_for_people_and_frames() -> None:
    """One for each number of people, and one for each larger frame with all of them."""
    options = BuildOptions()
    crops = profiles_of({"crops": (-1, 64, 48, 3)}, options)
    assert [profile["crops"][1][0] for profile in crops] == [1, 8, 32]
    frames = profiles_of({"frame": (-1, -1, 3), "boxes": (-1, 4)}, options)
    best = [(profile["frame"][1], profile["boxes"]) for profile in frames]
    assert best[2] == ((1080, 1920, 3), ((1, 4), (32, 4), (32, 4)))
    assert best[4] == ((4320, 7680, 3), ((1, 4), (8, 4), (32, 4)))
    assert {profile["frame"][0] for profile in frames} == {(32, 32, 3)}
    assert frames[4]["frame"][2] == (7680, 7680, 3)  # lying and standing
    # a detector sees one picture a run
    assert profiles_of({"images": (-1, 480, 480, 3)}, options) == (
        {"images": ((1, 480, 480, 3),) * 3},
    )
    assert len(profiles_of({"frame": (-1, -1, 3)}, options)) == 3


def test_types_are_those_of_the_graph(variant: tuple[onnx.ModelProto, Built]) -> None:
    """What was achieved, counted from the network, against the graph's own types by scope."""
    graph, built = variant
    types, low = element_types(graph), {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    dense = {"Conv", "MatMul", "Gemm"}
    asked = {
        helper.tensor_dtype_to_np_dtype(types[node.output[0]]).name
        for node in graph.graph.node
        if node.op_type in dense
    }
    kinds = {"CONVOLUTION", "MATRIX_MULTIPLY"}
    got = {
        kind
        for rows in built.achieved.values()
        for kind, counts in rows.items()
        if kinds & counts.keys()
    }
    assert got == asked
    # half weights only lie in float16: a Cast stands before any other use of them
    cast = {node.input[0] for node in graph.graph.node if node.op_type == "Cast"}
    if any(t.data_type in low and t.name not in cast for t in graph.graph.initializer):
        assert got - {"float32"}
    quantised = sum(node.op_type == "QuantizeLinear" for node in graph.graph.node)
    rows = [kinds.get("int8", {}) for kinds in built.achieved.values()]
    assert sum(row.get("QUANTIZE", 0) for row in rows) == quantised
    assert quantised or not any(rows)
    backbone = built.achieved.get("pose.backbone")
    if backbone is not None:
        convolutions = sum(counts.get("CONVOLUTION", 0) for counts in backbone.values())
        assert convolutions > 10


def test_samplers_are_linear_and_float32(variant: tuple[onnx.ModelProto, Built]) -> None:
    graph, _ = variant
    _builder, network = _network(graph)
    found = [layer for layer in layers(trt, network) if layer.kind == "GRID_SAMPLE"]
    assert len(found) == sum(node.op_type == "GridSample" for node in graph.graph.node)
    for layer in found:
        handle = layer.handle
        assert {handle.get_input(number).dtype for number in (0, 1)} == {trt.DataType.FLOAT}
        handle.__class__ = trt.IGridSampleLayer
        assert handle.interpolation_mode == trt.InterpolationMode.LINEAR
        assert handle.align_corners


def _graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    output: tuple[int, list[int | str]],
    constants: dict[str, np.ndarray],
    opset: int = 18,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info("y", *output)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


F32, F16 = TensorProto.FLOAT, TensorProto.FLOAT16
VECTOR: dict[str, tuple[int, list[int | str]]] = {"x": (F32, ["N", 4])}
MIXED = _graph(
    [helper.make_node("Add", ["x", "half"], ["y"], name="mixes")],
    VECTOR,
    (F32, ["N", 4]),
    {"half": np.ones(4, np.float16)},
)


def _sampler(mode: str, opset: int, maps: int = F32) -> onnx.ModelProto:
    attributes = {"mode": mode, "padding_mode": "border", "align_corners": 1}
    return _graph(
        [
            helper.make_node("Shape", ["x"], ["n"], end=1, name="count"),
            helper.make_node("Concat", ["n", "rest"], ["size"], axis=0, name="sizes"),
            helper.make_node("Expand", ["points", "size"], ["grid"], name="grids"),
            helper.make_node("GridSample", ["x", "grid"], ["y"], name="samples", **attributes),
        ],
        {"x": (maps, ["N", 4, 8, 8])},
        (maps, ["N", 4, 1, 1]),
        {"rest": np.array([1, 1, 2]), "points": np.zeros((1, 1, 1, 2), np.float32)},
        opset,
    )


def _quantised(zero: np.generic) -> onnx.ModelProto:
    ends = ["scale", "zero"]
    return _graph(
        [
            helper.make_node("QuantizeLinear", ["x", *ends], ["q"], name="quantises"),
            helper.make_node("DequantizeLinear", ["q", *ends], ["y"], name="restores"),
        ],
        VECTOR,
        (F32, ["N", 4]),
        {"scale": np.array(0.1, np.float32), "zero": np.array(zero)},
    )


def _forbidden() -> onnx.ModelProto:
    nodes = [helper.make_node("Unique", ["x"], ["y"], name="sorts")]
    return _graph(nodes, {"x": (F32, [4])}, (F32, ["M"]), {})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (MIXED, r"mixes types without a Cast.*mixes"),
        (_sampler("linear", 20), r"opset 20, expected 18.*nearest"),
        (_sampler("bilinear", 18, F16), r"samples has input types"),
        (_sampler("nearest", 18), r"samples has .*nearest"),
        (_quantised(np.uint8(128)), r"quantises \(QuantizeLinear\) quantises to uint8"),
        (_forbidden(), r"Unique.*TensorRT does not take"),
    ],
)
def test_refused_before_tensorrt_sees_it(model: onnx.ModelProto, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        build(model, "rtx", BuildOptions())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (MIXED, r"mixes \(Add\): .*must have same input types.*Float and Half"),
        (_sampler("bilinear", 18, F16), r"samples \(GridSample\): .*must be of same type"),
        (_quantised(np.uint8(128)), r"quantises \(QuantizeLinear\): .*zero point"),
        (_forbidden(), r"sorts \(Unique\)"),
    ],
)
def test_refused_by_the_parser_with_the_node_named(model: onnx.ModelProto, said: str) -> None:
    with pytest.raises(ExportError, match=said) as caught:
        _network(model)
    assert "cudaError" not in str(caught.value)  # a missing driver is not the reason
    assert trt.__version__ in str(caught.value)


def test_what_is_sound_is_not_refused() -> None:
    for model in (_sampler("bilinear", 18), _quantised(np.int8(0))):
        built = build(model, "rtx", BuildOptions(targets=("8.9",), level=0))
        assert len(built.engine) > 1000


def test_a_network_of_other_types_is_refused(model: onnx.ModelProto) -> None:
    """The check of what the parser made, with a graph that claims something else."""
    _builder, network = _network(model)
    check_network(trt, network, model)
    halves = _graph(
        [
            helper.make_node("Cast", ["x"], ["half"], to=F16, name="c"),
            helper.make_node("Relu", ["half"], ["y"], name="r"),
        ],
        VECTOR,
        (F16, ["N", 4]),
        {},
    )
    _builder, other = _network(halves)
    with pytest.raises(ExportError, match=r"output.*float16"):
        check_network(trt, other, halves)
    claims = onnx.ModelProto()
    claims.CopyFrom(halves)
    claims.graph.node[0].attribute[0].i = F32
    claims.graph.output[0].type.tensor_type.elem_type = F32
    with pytest.raises(ExportError, match="as float16, the graph says float32"):
        check_network(trt, other, claims)
    with pytest.raises(ExportError, match="proves nothing"):
        check_network(trt, other, model)
    assert achieved(trt, other, halves) == {"graph": {"float16": {"ACTIVATION": 1, "CAST": 1}}}


def test_options(model: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no timing cache"):
        build(model, "rtx", BuildOptions(timing_cache=tmp_path / "cache"))
    for people in ((8, 4, 32), (0, 4, 32), (4, 4), ()):
        with pytest.raises(InputError, match="people must be rising"):
            BuildOptions(people=people)
    with pytest.raises(InputError, match="leave --compatible out"):
        build(model, "rtx", BuildOptions(compatible="same-sm"))
    with pytest.raises(InputError, match="compatible must be of"):
        BuildOptions(compatible="any")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="targets must be of"):
        BuildOptions(targets=("9.0",))
    fixed = _graph(
        [helper.make_node("Relu", ["x"], ["y"], name="r")], {"x": (F32, [2, "M"])},
        (F32, [2, "M"]), {},
    )  # fmt: skip
    with pytest.raises(ExportError, match="only its first sizes may be unknown"):
        build(fixed, "rtx", BuildOptions())


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_the_timing_cache_of_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls, which TensorRT-RTX still has and ignores; and targets, which TensorRT has not."""
    monkeypatch.setattr("cfpose_export.engines.tensorrt.open_flavour", lambda flavour, why: trt)
    cache = tmp_path / "kernels.cache"
    for _ in range(2):  # the second reads what the first wrote
        build(_quantised(np.int8(0)), "tensorrt", BuildOptions(timing_cache=cache))
        assert cache.is_file()
    with pytest.raises(InputError, match="targets are for TensorRT-RTX"):
        build(_quantised(np.int8(0)), "tensorrt", BuildOptions(targets=("8.9",)))


def test_the_flavour_is_chosen_openly(monkeypatch: pytest.MonkeyPatch) -> None:
    def install(*modules: str) -> None:
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name: object() if name in modules else None
        )

    install("tensorrt_rtx")
    assert (choose_flavour("auto"), choose_flavour("tensorrt")) == ("rtx", "tensorrt")
    install("tensorrt")
    assert choose_flavour("auto") == "tensorrt"
    install("tensorrt", "tensorrt_rtx")
    with pytest.raises(InputError, match="both installed"):
        choose_flavour("auto")
    install()
    with pytest.raises(MissingDependencyError, match=r"\[tensorrt\].*\[tensorrt-rtx\]"):
        choose_flavour("auto")


def test_our_graphs_are_buildable(model: onnx.ModelProto) -> None:
    check_buildable(model)
    assert read_spec(model).name == "tiny"
