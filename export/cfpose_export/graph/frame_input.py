"""A graph that takes whole frames: crops are cut in front of the core, results moved behind it.

The core keeps its nodes and weights: the sampler goes in front of it, the inverse map behind. Needs
onnx alone, so a graph whose checkpoint is gone can be rebuilt too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from cfpose_export.graph.rules import (
    FRAME_INPUTS,
    OPSET,
    POSE_OUTPUTS,
    SAMPLER_SCOPE,
    SCOPES_KEY,
    check_graph,
    read_spec,
    write_spec,
)
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.spec import ModelSpec

PLACED = ("keypoints", "covariance", "coarse")  # outputs of the core that are in crop pixels
CORE_INPUT = "core_crops"  # float32 (N, H, W, 3), BGR, 0 to 255: what the core reads
# T is the number of taps, S the crop's aspect-true region; all positions are frame pixels
_SAMPLER = """
<ir_version: 8, opset_import: ["" : {opset}]>
sampler (uint8[h, w, 3] frame, float[N, 4] boxes) => (float[N, H, W, 3] crops)
{{
  first = Slice(boxes, zero, two, one)
  last = Slice(boxes, two, four, one)
  corners = Add(first, last)
  centre = Mul(corners, half)
  span = Sub(last, first)
  steps = Mul(span, step_of_span)
  step = ReduceMax <keepdims = 1> (steps, one)
  step5 = Unsqueeze(step, around)
  centre_x = Slice(centre, zero, one, one)
  centre_y = Slice(centre, one, two, one)
  centre_x5 = Unsqueeze(centre_x, around)
  centre_y5 = Unsqueeze(centre_y, around)
  columns_px = Mul(step5, columns)
  rows_px = Mul(step5, rows)
  column_x = Add(centre_x5, columns_px)
  row_y = Add(centre_y5, rows_px)
  {spread}
  shape = Shape(frame)
  sizes = Cast <to = 1> (shape)
  height = Slice(sizes, zero, one, zero)
  width = Slice(sizes, one, two, zero)
  past_x = Add(width, unit)
  past_y = Add(height, unit)
  x_below = Min({x}, past_x)
  y_below = Min({y}, past_y)
  x_inside = Max(x_below, before)
  y_inside = Max(y_below, before)
  last_x = Sub(width, unit)
  last_y = Sub(height, unit)
  half_x = Mul(last_x, half)
  half_y = Mul(last_y, half)
  x_scaled = Div(x_inside, half_x)
  y_scaled = Div(y_inside, half_y)
  x_norm = Sub(x_scaled, unit)
  y_norm = Sub(y_scaled, unit)
  x_part = Mul(x_norm, x_axis)
  y_part = Mul(y_norm, y_axis)
  lattice = Add(x_part, y_part)
  grid = Reshape(lattice, grid_shape)
  pixels = Cast <to = 1> (frame)
  planes = Transpose <perm = [2, 0, 1]> (pixels)
  image = Unsqueeze(planes, zero)
  samples = GridSample <mode = "bilinear", padding_mode = "zeros", align_corners = 1> (image, grid)
  stacked = Reshape(samples, stack_shape)
  people = ReduceMean <keepdims = 0> (stacked, one)
  crops = Transpose <perm = [1, 2, 3, 0]> (people)
}}
"""
# the taps spread with the shrinking, so that their kernel has the variance of the area's box
_SPREAD = """
  area = Mul(step5, step5)
  excess = Sub(area, interpolated)
  positive = Max(excess, nothing)
  reach = Sqrt(positive)
  tap_columns = Mul(reach, tap_x)
  tap_rows = Mul(reach, tap_y)
  tapped_x = Add(column_x, tap_columns)
  tapped_y = Add(row_y, tap_rows)
"""
_PLACEMENT = """
<ir_version: 8, opset_import: ["" : {opset}]>
placement (float[N, 2] centre, float[N, 1] step) => ({outputs})
{{
  centre3 = Unsqueeze(centre, one)
  step3 = Unsqueeze(step, one)
  {nodes}
}}
"""
_PLACE_POINTS = """
  {name}_off = Sub({name}_crop, middle)
  {name}_px = Mul({name}_off, {steps})
  {name} = Add({name}_px, centre3)
"""
_PLACE_COVARIANCE = """
  step4 = Unsqueeze(step3, one)
  step_area = Mul(step4, step4)
  {stretched}
  covariance = Mul(covariance_crop, {area})
"""
_STRETCHED = "area_xy = Mul(step_area, stretch_area)"


def sampler(spec: ModelSpec) -> onnx.GraphProto:
    """`frame` and `boxes` → CORE_INPUT, with spec.antialias² samples a crop pixel."""
    width, height = spec.size_wh
    taps, (middle, stretch) = spec.antialias, _lattice(spec)
    text = _SAMPLER.format(
        opset=OPSET,
        spread=_SPREAD if taps > 1 else "",
        x="tapped_x" if taps > 1 else "column_x",
        y="tapped_y" if taps > 1 else "row_y",
    )
    whole = {"zero": [0], "one": [1], "two": [2], "four": [4], "around": [0, 3, 4]}
    whole |= {"grid_shape": [1, -1, width, 2], "stack_shape": [3, taps**2, -1, height, width]}
    real: dict[str, object] = {
        "half": [0.5],
        "unit": [1.0],
        "before": [-2.0],  # far enough out to be black, near enough for every integer type
        "step_of_span": np.array([1 / width, 1 / height]) * spec.box_scale,
        "columns": ((np.arange(width) - middle[0]) * stretch[0]).reshape(1, 1, 1, -1, 1),
        "rows": ((np.arange(height) - middle[1]) * stretch[1]).reshape(1, 1, -1, 1, 1),
        "x_axis": [1.0, 0.0],
        "y_axis": [0.0, 1.0],
    }
    if taps > 1:
        offsets = tap_offsets(taps)
        real |= {
            "interpolated": [2.0],
            "nothing": [0.0],
            "tap_x": np.tile(offsets, taps).reshape(-1, 1, 1, 1, 1),
            "tap_y": np.repeat(offsets, taps).reshape(-1, 1, 1, 1, 1),
        }
    graph = parsed(text, whole, real)
    outer = {"crops": CORE_INPUT, "frame": "frame", "boxes": "boxes"}
    rename(graph, {f"sampler.{inner}": name for inner, name in outer.items()})
    return graph


def _lattice(spec: ModelSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where a region's centre lies in its crop (x, y), and W and H over its sides there."""
    size = np.asarray(spec.size_wh, dtype=np.float64)
    if spec.geometry == "classic":
        return size / 2, np.ones(2)
    return (size - 1) / 2, size / (size - 1)  # W frame steps on W − 1 crop steps


def tap_offsets(taps: int) -> NDArray[np.float64]:
    """(taps,) places along one axis, in units of √(step² − 2) frame pixels; `taps` > 1.

    A box of `step` pixels has variance step² / 12, bilinear interpolation already gives 1 / 6. With
    evenly spaced taps the rest is (reach² / 12)(1 − 1 / taps²); solved for the reach.
    """
    places: NDArray[np.float64] = (np.arange(taps) + 0.5) / taps - 0.5
    return places / math.sqrt(1 - 1 / taps**2)


def placement(spec: ModelSpec, outputs: Sequence[str]) -> onnx.GraphProto:
    """NAME_crop → NAME for the PLACED among the `outputs`; reads the sampler's centre and step."""
    plain = spec.geometry == "classic"
    parts = [] if plain else ["  step_xy = Mul(step3, stretch)"]
    steps = "step3" if plain else "step_xy"
    parts += [_PLACE_POINTS.format(name=name, steps=steps) for name in ("keypoints", "coarse")]
    named = ["float[N, K, 2] keypoints", "float[N, K, 2] coarse"]
    if "covariance" in outputs:
        area = "step_area" if plain else "area_xy"
        parts.append(_PLACE_COVARIANCE.format(area=area, stretched=_STRETCHED * (not plain)))
        named.append("float[N, K, 2, 2] covariance")
    text = _PLACEMENT.format(opset=OPSET, outputs=", ".join(named), nodes="\n".join(parts))
    middle, stretch = _lattice(spec)
    real: dict[str, object] = {"middle": middle}
    if not plain:
        real |= {"stretch": stretch, "stretch_area": np.outer(stretch, stretch)}
    graph = parsed(text, {"one": [1]}, real, "placement")
    outer = [f"{name}_crop" for name in PLACED] + list(PLACED)
    rename(graph, {f"placement.{name}": name for name in outer})
    rename(graph, {f"placement.{name}": f"sampler.{name}" for name in ("centre", "step")})
    return graph


def parsed(
    text: str, whole: Mapping[str, object], real: Mapping[str, object], prefix: str = "sampler"
) -> onnx.GraphProto:
    """The graph of a text with its constants; names get the prefix, nodes the sampler's scope."""
    graph = parser.parse_model(text).graph
    constants: dict[str, NDArray[Any]] = {
        name: np.asarray(value, dtype=np.int64) for name, value in whole.items()
    }
    constants |= {name: np.asarray(value, dtype=np.float32) for name, value in real.items()}
    for name, array in constants.items():
        graph.initializer.append(numpy_helper.from_array(array, name))
    names = {v for node in graph.node for v in (*node.input, *node.output)}
    names |= {value.name for value in (*graph.input, *graph.output)}
    rename(graph, {name: f"{prefix}.{name}" for name in names})
    for node in graph.node:
        node.name = f"node_{node.output[0]}"
        node.metadata_props.add(key=SCOPES_KEY, value=f"['', {SAMPLER_SCOPE}]")
    return graph


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename values wherever they stand."""
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)


def frame_graph(model: onnx.ModelProto, antialias: int = 1) -> onnx.ModelProto:
    """The frame-in twin of a proven crops-in graph; the same input gives the same bytes.

    Inputs `frame` uint8 [h, w, 3] BGR, h and w at least 2, and `boxes` float32 [N, 4] xyxy; outputs
    those of `model`, keypoints and coarse in frame pixels, covariance in frame pixels². N = 0 is
    valid. `antialias` s > 1 takes s × s samples a crop pixel where the frame is shrunk more than
    √2 times. Raises InputError when `model` takes frames already.
    """
    spec = read_spec(model)
    if spec.input != "crops":
        raise InputError(f"{spec.name} takes a {spec.input} already; give the crops-in graph")
    spec = dataclasses.replace(spec, input="frame", antialias=antialias)
    outputs = [o.name for o in model.graph.output]
    merged = core_graph(model)
    graph = merged.graph
    rename(graph, {name: f"{name}_crop" for name in PLACED if name in outputs})
    before, behind = sampler(spec), placement(spec, outputs)
    core = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:]
    for part in (before, behind):
        graph.initializer.extend(part.initializer)
    graph.node.extend([*before.node, *core, *behind.node])
    graph.input.extend(before.input)
    joints = len(spec.skeleton)
    for name in outputs:
        last = {"confidence": [], "covariance": [2, 2]}.get(name, [2])
        shape: list[str | int | None] = ["N", joints, *last]
        kind = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        graph.output.append(kind)
    write_spec(merged, spec)
    onnx.checker.check_model(merged, full_check=True)
    check_graph(merged, FRAME_INPUTS, POSE_OUTPUTS)
    return merged


def core_graph(
    model: onnx.ModelProto, name: str = "crops", core_name: str = CORE_INPUT
) -> onnx.ModelProto:
    """A graph without the first Cast of its input: it takes float32 pixels, named `core_name`.

    Raises ExportError when the pixels of the input `name` go anywhere but into one Cast to float32.
    """
    core = onnx.ModelProto()
    core.CopyFrom(model)
    graph = core.graph
    readers = [node for node in graph.node if name in node.input and node.op_type != "Shape"]
    targets = [a.i for node in readers for a in node.attribute if a.name == "to"]
    if [node.op_type for node in readers] != ["Cast"] or targets != [onnx.TensorProto.FLOAT]:
        nodes = [f"{node.op_type} {node.name}" for node in readers]
        raise ExportError(f"{name} goes into {nodes}, expected one Cast to float32")
    graph.node.remove(readers[0])
    rename(graph, {readers[0].output[0]: core_name, name: core_name})
    shape = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    value = onnx.helper.make_tensor_value_info(core_name, onnx.TensorProto.FLOAT, shape)
    graph.input[0].CopyFrom(value)
    return core
