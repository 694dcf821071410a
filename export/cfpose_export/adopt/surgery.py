"""Crops in front of a foreign network, its decoder behind: one graph of the usual contract.

MoveNet's coordinates [N, 1, K, 3] = (y, x, score) of the square crop say nothing of a joint's
spread, so the variance is what OKS forgives that joint of that person, (2 sigma)² · area; only
calibration makes a covariance of it.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from cfpose_export.adopt.adoption import Plan, core_name, is_taken
from cfpose_export.adopt.decode.heatmap import heatmap_decoder
from cfpose_export.adopt.decode.mirror import inward
from cfpose_export.adopt.decode.simcc import simcc_decoder
from cfpose_export.adopt.decode.text import BEHIND_SCOPE, FRONT_SCOPE, PREFIX, fragment
from cfpose_export.graph.frame_input import rename
from cfpose_export.graph.rules import POSE_OUTPUTS, SCOPES_KEY, check_graph, write_spec
from cfpose_sdk import __version__
from cfpose_sdk.errors import ExportError
from cfpose_sdk.keypoints import AREA_SHARE, MIN_AREA_PX
from cfpose_sdk.spec import ModelSpec

PARTS = 8  # a network without module names is cut into so many, for the lower precisions' gate
_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def fuse(plan: Plan) -> onnx.ModelProto:
    """The artifact, with its spec and without proof. Raises ExportError when it is not sound."""
    model = onnx.ModelProto()
    model.CopyFrom(plan.core)
    graph = model.graph
    _keep_apart(graph)
    _name_scopes(graph)
    core = list(graph.node)
    parts = [_front(plan, _input_type(plan, graph)), *_behind(plan)]
    spec, joints = plan.spec, len(plan.spec.skeleton)
    n = (spec.adopted.batch if spec.adopted else 0) or "N"
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend([*parts[0].node, *core, *(node for p in parts[1:] for node in p.node)])
    known: set[str] = {tensor.name for tensor in graph.initializer}
    for part in parts:
        graph.initializer.extend(_renamed_constants(part, known))
    width, height = spec.size_wh
    graph.input.append(
        helper.make_tensor_value_info("crops", TensorProto.UINT8, [n, height, width, 3])
    )
    for name in POSE_OUTPUTS:
        last = {"confidence": [], "covariance": [2, 2]}.get(name, [2])
        shape = [n, joints, *last]
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    _drop_unused(graph)
    graph.name = "adopted"
    model.producer_name, model.producer_version = "cfpose", __version__
    model.ir_version = max(8, model.ir_version)
    write_spec(model, spec)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the adopted graph is not sound: {error}") from error
    check_graph(model, "crops", POSE_OUTPUTS)
    return model


def _keep_apart(graph: onnx.GraphProto) -> None:
    """Give the network's own values names that the contract's and ours cannot meet."""
    names = {v for node in graph.node for v in (*node.input, *node.output) if v}
    names |= {tensor.name for tensor in graph.initializer}
    rename(graph, {name: core_name(name) for name in names if is_taken(name)})


def _name_scopes(graph: onnx.GraphProto) -> None:
    """Scopes by which the lower precisions choose: the file's own below `backbone`, else by place.

    What no weighted node follows is the network's own decoding, and stays float32.
    """
    last = max((i for i, n in enumerate(graph.node) if n.op_type in _WEIGHTED), default=-1)
    for index, node in enumerate(graph.node):
        own = _own_scope(node)
        if index > last:
            scope = "['', 'decode', 'network']"
        else:
            part = own or f"part{index * PARTS // (last + 1)}"
            scope = str(["", "backbone", f"backbone.{part}", node.op_type])
        del node.metadata_props[:]
        node.metadata_props.add(key=SCOPES_KEY, value=scope)
        node.name = node.name or f"network_{index}"


def _own_scope(node: onnx.NodeProto) -> str:
    """The module that the exporter named; "" where it named none."""
    for entry in node.metadata_props:
        if entry.key == SCOPES_KEY:
            try:
                names = [str(name) for name in ast.literal_eval(entry.value)[:-1] if name]
            except (SyntaxError, ValueError):
                return ""
            return names[-1] if names else ""
    return ".".join(part for part in node.name.split("/")[:-1] if part)


def _input_type(plan: Plan, graph: onnx.GraphProto) -> int:
    """The type to feed. Whole levels that the network casts to float32 at once may be float32: the
    samples of a frame are not whole, and rounding them would move joints.
    """
    readers = [node for node in graph.node if core_name(plan.source.input) in node.input]
    casts = [a.i for node in readers if node.op_type == "Cast" for a in node.attribute]
    if casts == [TensorProto.FLOAT] * len(readers):
        return int(TensorProto.FLOAT)
    return int(helper.np_dtype_to_tensor_dtype(plan.source.dtype))


def _front(plan: Plan, kind: int) -> onnx.GraphProto:
    """uint8 BGR crops → what the network takes, in the type `kind`."""
    preset, spec, source = plan.preset, plan.spec, plan.source
    width = spec.size_wh[0]
    mean, std = np.asarray(preset.mean, float), np.asarray(preset.std, float)
    lines, value = ["real = Cast <to = 1> (crops)"], "real"
    if spec.flip_test:
        lines += [
            "mirrored = Gather <axis = 2> (real, mirrored_columns)",
            "both = Concat <axis = 0> (real, mirrored)",
        ]
        value = "both"
    if preset.colour == "rgb":
        lines.append(f"ordered = Gather <axis = 3> ({value}, channels)")
        value = "ordered"
    else:
        mean, std = mean[::-1], std[::-1]
    if mean.any():
        lines.append(f"shifted = Sub({value}, mean)")
        value = "shifted"
    if (std != 1).any():
        lines.append(f"scaled = Div({value}, std)")
        value = "scaled"
    if source.channels_first:
        lines.append(f"planes = Transpose <perm = [0, 3, 1, 2]> ({value})")
        value = "planes"
    if helper.tensor_dtype_to_np_dtype(kind).kind in "iu":  # a frame's samples are not whole
        lines.append(f"whole_levels = Round({value})")
        value = "whole_levels"
    lines.append(f"pixels = Cast <to = {kind}> ({value})")
    constants = {
        "mirrored_columns": np.arange(width)[::-1].copy(), "channels": [2, 1, 0],
        "mean": mean, "std": std,
    }  # fmt: skip
    graph = fragment(lines, "uint8[N, H, W, 3] crops", "float pixels", constants, scope=FRONT_SCOPE)
    rename(graph, {f"{PREFIX}crops": "crops", f"{PREFIX}pixels": core_name(source.input)})
    return graph


def _behind(plan: Plan) -> list[onnx.GraphProto]:
    """The network's outputs → the contract's."""
    answer, spec = plan.answer, plan.spec
    if answer.family == "heatmap":
        decoder, names = heatmap_decoder(plan.maps), ["maps"]
    elif answer.family == "simcc":
        decoder, names = simcc_decoder(plan.vectors), ["x", "y"]
    else:
        rank = len(answer.shapes[0])
        decoder = coordinates_decoder(rank, spec.size_wh, spec.skeleton.oks_sigmas)
        names = ["triples"]
    parts = [inward(plan, o, n) for o, n in zip(answer.outputs, names, strict=True)]
    return [*parts, decoder, _contract(spec)]


def _contract(spec: ModelSpec) -> onnx.GraphProto:
    """`xy`, `coarse_xy`, `score`, `variances` → the contract's outputs, calibrated."""
    lines = [
        "keypoints = Identity(xy)",
        "coarse = Identity(coarse_xy)",
        "score_high = Min(score, highest)",
        "score_in = Max(score_high, lowest)",
    ]
    if spec.calibration == (1.0, 0.0):
        lines.append("confidence = Identity(score_in)")
    else:
        lines += [
            "misses = Sub(whole, score_in)", "log_hit = Log(score_in)", "log_miss = Log(misses)",
            "logit = Sub(log_hit, log_miss)", "sloped = Mul(logit, slope)",
            "moved = Add(sloped, intercept)", "confidence = Sigmoid(moved)",
        ]  # fmt: skip
    spread = "variances"
    if spec.covariance_odds_power:
        lines += [
            "sure_high = Min(confidence, highest)", "sure = Max(sure_high, lowest)",
            "unsure = Sub(whole, sure)", "log_sure = Log(sure)", "log_unsure = Log(unsure)",
            "log_odds = Sub(log_sure, log_unsure)", "powered = Mul(log_odds, minus_power)",
            "wider = Exp(powered)", "wider3 = Unsqueeze(wider, axis2)",
            "widened = Mul(variances, wider3)",
        ]  # fmt: skip
        spread = "widened"
    lines += [
        f"scaled_variances = Mul({spread}, covariance_scale)",
        "columns4 = Unsqueeze(scaled_variances, axis3)",
        "covariance = Mul(columns4, unit_matrix)",
    ]
    near = 1e-6 if spec.calibration != (1.0, 0.0) else 0.0
    constants = {
        "lowest": near, "highest": 1.0 - near, "whole": 1.0, "slope": spec.calibration[0],
        "intercept": spec.calibration[1], "minus_power": -spec.covariance_odds_power,
        "axis2": [2], "axis3": [3], "covariance_scale": spec.covariance_scale,
        "unit_matrix": np.eye(2),
    }  # fmt: skip
    inputs = "float xy, float coarse_xy, float score, float variances"
    outputs = "float keypoints, float confidence, float covariance, float coarse"
    graph = fragment(lines, inputs, outputs, constants, scope=BEHIND_SCOPE)
    rename(graph, {f"{PREFIX}{name}": name for name in POSE_OUTPUTS})
    return graph


def _renamed_constants(part: onnx.GraphProto, known: set[str]) -> list[onnx.TensorProto]:
    """The part's constants; those of an earlier part that have the name get one of their own."""
    clash = {t.name: f"{t.name}.{len(known)}" for t in part.initializer if t.name in known}
    rename(part, clash)
    known |= {tensor.name for tensor in part.initializer}
    return list(part.initializer)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Nodes and constants that no output needs: further outputs of the network, for one."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(name for name in node.input if name)
            kept.append(node)
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(constants)


def coordinates_decoder(
    rank: int, size_wh: tuple[int, int], oks_sigmas: Sequence[float]
) -> onnx.GraphProto:
    """`triples` [N, 1, K, 3], or [N, K, 3] of rank 3 → as the other decoders."""
    joints = len(oks_sigmas)
    lines = [
        "rows3 = Squeeze(triples, axis1)" if rank == 4 else "rows3 = Identity(triples)",
        "relative = Gather <axis = 2> (rows3, x_then_y)",
        "xy = Mul(relative, size)",
        "coarse_xy = Identity(xy)",
        "score = Gather <axis = 2> (rows3, third)",
        "high = ReduceMax <keepdims = 1> (xy, axis1)",
        "low = ReduceMin <keepdims = 1> (xy, axis1)",
        "extent = Sub(high, low)",
        "extent_x = Gather <axis = 2> (extent, first)",
        "extent_y = Gather <axis = 2> (extent, second)",
        "rectangle = Mul(extent_x, extent_y)",
        "share = Mul(rectangle, area_share)",
        "area = Max(share, least_area)",
        "variances = Mul(area, squared_k)",
    ]
    constants = {
        "axis1": [1], "x_then_y": [1, 0], "third": 2, "size": np.array(size_wh) * 1.0,
        "first": [0], "second": [1], "area_share": AREA_SHARE, "least_area": MIN_AREA_PX,
        "squared_k": np.tile(np.square(2 * np.asarray(oks_sigmas))[None, :, None], (1, 1, 2)),
    }  # fmt: skip
    middle = "1, " if rank == 4 else ""
    outputs = "float[N, K, 2] xy, float[N, K, 2] coarse_xy, float[N, K] score, "
    return fragment(
        lines,
        f"float[N, {middle}{joints}, 3] triples",
        outputs + "float[N, K, 2] variances",
        constants,
    )
