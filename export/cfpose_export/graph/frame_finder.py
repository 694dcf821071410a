"""A finder that takes whole frames: the letterbox is made inside the graph, as two products.

The core keeps its nodes and weights, and gives boxes in letterbox pixels as before; whoever runs it
divides by the scale that `cfpose_sdk.boxes.letterbox` would have returned. Needs onnx alone.
"""

from __future__ import annotations

import numpy as np
import onnx

from cfpose_export.graph.frame_input import core_graph, parsed, rename
from cfpose_export.graph.rules import FINDER_OUTPUTS, OPSET, check_graph, read_finder_spec
from cfpose_sdk.errors import InputError
from cfpose_sdk.spec import FinderSpec

FINDER_CORE_INPUT = "core_images"  # float32 (1, H, W, 3), BGR, whole grey levels
# h, w are the frame's sides; H, W the letterbox's. Products and quotients of sides are exact in
# float32 up to 8192 px, so that the picture's size there is rounded as on the host
_LETTERBOX = """
<ir_version: 8, opset_import: ["" : {opset}]>
letterbox (uint8[h, w, 3] frame) => (float[1, H, W, 3] images)
{{
  shape = Shape(frame)
  rows_n = Gather(shape, index0)
  columns_n = Gather(shape, index1)
  height = Cast <to = 1> (rows_n)
  width = Cast <to = 1> (columns_n)
  by_height = Mul(width, size_y)
  by_width = Mul(height, size_x)
  width_at = Div(by_height, height)
  height_at = Div(by_width, width)
  width_most = Min(width_at, size_x)
  height_most = Min(height_at, size_y)
  width_round = Round(width_most)
  height_round = Round(height_most)
  fitted_x = Max(width_round, unit)
  fitted_y = Max(height_round, unit)
  scale_x = Div(size_x, width)
  scale_y = Div(size_y, height)
  scale = Min(scale_x, scale_y)
  shrinks = Less(scale, unit)
  {weights_x}
  {weights_y}
  pixels = Cast <to = 1> (frame)
  planes = Transpose <perm = [2, 0, 1]> (pixels)
  shorter = MatMul(weights_y, planes)
  turned_x = Transpose <perm = [1, 0]> (weights_x)
  smaller = MatMul(shorter, turned_x)
  levels = Round(smaller)
  covered = Mul(inside_y, inside_row_x)
  free = Sub(unit, covered)
  margin = Mul(free, pad)
  padded = Add(levels, margin)
  picture = Transpose <perm = [1, 2, 0]> (padded)
  images = Unsqueeze(picture, axis0)
}}
"""
# (S, s) shares of the s pixels of a frame's side in the S of the letterbox. Shrinking: the overlap
# of a frame pixel with the letterbox pixel, over that one's length; growing: linear interpolation
_WEIGHTS = """
  ratio_{a} = Div({side}, fitted_{a})
  numbers_{a} = Range(index0, {count}, index1)
  first_{a} = Cast <to = 1> (numbers_{a})
  next_{a} = Add(first_{a}, unit)
  from_{a} = Mul(places_{a}, ratio_{a})
  to_{a} = Add(from_{a}, ratio_{a})
  end_{a} = Min(next_{a}, to_{a})
  start_{a} = Max(first_{a}, from_{a})
  shared_{a} = Sub(end_{a}, start_{a})
  overlap_{a} = Max(shared_{a}, nothing)
  area_{a} = Div(overlap_{a}, ratio_{a})
  middles_{a} = Mul(middle_places_{a}, ratio_{a})
  centres_{a} = Sub(middles_{a}, half)
  last_{a} = Sub({side}, unit)
  below_{a} = Min(centres_{a}, last_{a})
  held_{a} = Max(below_{a}, nothing)
  away_{a} = Sub(held_{a}, first_{a})
  distance_{a} = Abs(away_{a})
  near_{a} = Sub(unit, distance_{a})
  linear_{a} = Max(near_{a}, nothing)
  chosen_{a} = Where(shrinks, area_{a}, linear_{a})
  lies_{a} = Less(places_{a}, fitted_{a})
  inside_{a} = Cast <to = 1> (lies_{a})
  weights_{a} = Mul(chosen_{a}, inside_{a})
"""


def letterboxing(spec: FinderSpec) -> onnx.GraphProto:
    """`frame` → FINDER_CORE_INPUT, the letterbox of `cfpose_sdk.boxes` to a grey level."""
    width, height = spec.size_wh
    text = _LETTERBOX.format(
        opset=OPSET,
        weights_x=_WEIGHTS.format(a="x", side="width", count="columns_n")
        + "  inside_row_x = Transpose <perm = [1, 0]> (inside_x)",
        weights_y=_WEIGHTS.format(a="y", side="height", count="rows_n"),
    )
    real: dict[str, object] = {
        "size_x": float(width),
        "size_y": float(height),
        "unit": 1.0,
        "half": 0.5,
        "nothing": 0.0,
        "pad": float(spec.pad_value),
    }
    for axis, side in (("x", width), ("y", height)):
        real[f"places_{axis}"] = np.arange(side).reshape(-1, 1)
        real[f"middle_places_{axis}"] = np.arange(side).reshape(-1, 1) + 0.5
    graph = parsed(text, {"index0": 0, "index1": 1, "axis0": [0]}, real, "letterbox")
    rename(graph, {"letterbox.images": FINDER_CORE_INPUT, "letterbox.frame": "frame"})
    return graph


def frame_finder(model: onnx.ModelProto) -> onnx.ModelProto:
    """The frame-in twin of a finder's graph; the same input gives the same bytes.

    Input `frame` uint8 [h, w, 3] BGR of any size; outputs `boxes` [1, M, 4] and `scores` [1, M] in
    letterbox pixels. Raises InputError when `model` takes frames already.
    """
    spec = read_finder_spec(model)
    if [value.name for value in model.graph.input] != ["images"]:
        raise InputError(f"{spec.name} takes a frame already; give the one on letterboxes")
    merged = core_graph(model, "images", FINDER_CORE_INPUT)
    graph, before = merged.graph, letterboxing(spec)
    core = list(graph.node)
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.initializer.extend(before.initializer)
    graph.node.extend([*before.node, *core])
    graph.input.extend(before.input)
    for value in graph.output:
        first = value.type.tensor_type.shape.dim[0]
        first.ClearField("dim_param")
        first.dim_value = 1
    onnx.checker.check_model(merged, full_check=True)
    check_graph(merged, "frame", FINDER_OUTPUTS)
    return merged
