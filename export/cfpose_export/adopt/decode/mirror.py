"""The network's outputs in float32, averaged with those of the mirror image where asked."""

from __future__ import annotations

import numpy as np
import onnx

from cfpose_export.adopt.adoption import Plan, core_name
from cfpose_export.adopt.decode.text import PREFIX, fragment
from cfpose_export.graph.frame_input import rename


def inward(plan: Plan, output: str, name: str) -> onnx.GraphProto:
    """An output of the network, in float32, and averaged with its mirror image where asked."""
    if not plan.spec.flip_test:
        graph = fragment([f"{name} = Cast <to = 1> (raw)"], "float raw", f"float {name}", {})
        rename(graph, {f"{PREFIX}raw": core_name(output)})
        return graph
    shape = plan.answer.shapes[plan.answer.outputs.index(output)]
    lines = [
        f"{name}_real = Cast <to = 1> (raw)",
        f"{name}_pairs = Reshape({name}_real, {name}_pair_shape)",
        f"{name}_here = Gather <axis = 0> ({name}_pairs, nil)",
        f"{name}_there = Gather <axis = 0> ({name}_pairs, one)",
        *_mirror_lines(plan, name, len(shape)),
        f"{name}_sum = Add({name}_here, {name}_back)",
        f"{name} = Mul({name}_sum, half)",
    ]
    width = plan.spec.size_wh[0]
    constants = {
        f"{name}_pair_shape": [2, -1, *shape[1:]], "nil": 0, "one": 1, "half": 0.5,
        "flip_order": plan.flip_order, f"{name}_columns": mirrored_places(plan, name, shape),
        "upside": [1.0, -1.0, 1.0], "shift": [0.0, (width - 1) / width, 0.0],
    }  # fmt: skip
    graph = fragment(lines, "float raw", f"float {name}", constants)
    rename(graph, {f"{PREFIX}raw": core_name(output)})
    return graph


def _mirror_lines(plan: Plan, name: str, rank: int) -> list[str]:
    """`NAME_there` as the crop itself would have given it: `NAME_back`."""
    axis = 2 if name == "triples" and rank == 4 else 1
    swapped = f"{name}_swapped = Gather <axis = {axis}> ({name}_there, flip_order)"
    if name == "triples":
        return [swapped, f"{name}_turned = Mul({name}_swapped, upside)",
                f"{name}_back = Add({name}_turned, shift)"]  # fmt: skip
    if name == "y":
        return [swapped, f"{name}_back = Identity({name}_swapped)"]
    return [swapped, f"{name}_back = Gather <axis = {rank - 1}> ({name}_swapped, {name}_columns)"]


def mirrored_places(plan: Plan, name: str, shape: tuple[int, ...]) -> list[int]:
    """Which place of the mirrored answer belongs to each place, x → W − 1 − x in the crop."""
    count = shape[-1]
    if name == "maps":
        # a map pixel is `stride` crop pixels from the edge, so that the classic mirror falls
        # between pixels; HRNet's authors shift by one, which is the nearest
        late = 0 if plan.spec.geometry == "udp" else 1
        return [min(count - 1 - place + late, count - 1) for place in range(count)]
    ratio = plan.spec.split_ratio
    last = round((plan.spec.size_wh[0] - 1) * ratio)
    return [int(np.clip(last - place, 0, count - 1)) for place in range(count)]
