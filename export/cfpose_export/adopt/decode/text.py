"""Parts of a graph written in ONNX's text form, with their constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from cfpose_export.graph.frame_input import rename
from cfpose_export.graph.rules import OPSET, SCOPES_KEY

FRONT_SCOPE = "['', 'normalise', 'adopted']"  # scopes that no lower precision touches
BEHIND_SCOPE = "['', 'decode', 'adopted']"
PREFIX = "adopted."


def fragment(
    lines: Sequence[str],
    inputs: str,
    outputs: str,
    constants: Mapping[str, object],
    *,
    scope: str = BEHIND_SCOPE,
) -> onnx.GraphProto:
    """The nodes of some lines of ONNX text; every value's name gets PREFIX.

    `inputs` and `outputs` are in the text's own words ("float[N, 3] x"). Whole-number constants
    become int64, others float32; those that no line reads are left out. Values of equal
    name in two fragments are the same value.
    """
    text = "\n".join(
        [
            f'<ir_version: 8, opset_import: ["" : {OPSET}]>',
            f"part ({inputs}) => ({outputs}) {{",
            *lines,
            "}",
        ]
    )
    graph = parser.parse_model(text).graph
    used = {name for node in graph.node for name in node.input}
    for name, value in constants.items():
        if name not in used:
            continue
        array: NDArray[Any] = np.asarray(value)
        if array.dtype != np.bool_:
            array = array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
        graph.initializer.append(numpy_helper.from_array(array, name))
    names = {v for node in graph.node for v in (*node.input, *node.output) if v}
    names |= {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    rename(graph, {name: PREFIX + name for name in names})
    for node in graph.node:
        node.name = f"node_{node.output[0]}"
        node.metadata_props.add(key=SCOPES_KEY, value=scope)
    return graph
