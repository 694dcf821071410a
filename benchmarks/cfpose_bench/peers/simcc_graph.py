"""Cut the SimCC network out of a cfpose artifact, as a graph that RTMPose's runners can load.

Input `input` float32 [1, 3, H, W], BGR 0..255; outputs `simcc_x`, `simcc_y` [1, K, bins]. What
comes before (crop, uint8) and after (decoding, refinement) is left to the runner, so such a graph
measures the coarse pose only. The graph normalises itself, and its peaks are in [0, 1]: NAME.json
beside it says so to rtmlib.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cfpose_sdk.errors import ArtifactError, require
from cfpose_sdk.files import write_file
from cfpose_sdk.spec import SPEC_KEY, ModelSpec

_LOGITS = ("x_logits", "y_logits")  # names inside every exported graph
_VECTORS = ("simcc_x", "simcc_y")  # what the runners ask for


def write_simcc_graph(source: Path, target: Path) -> None:
    """Cut the network out of an exported artifact. Raises ArtifactError without a SimCC pair."""
    require("onnx", extra="bench", why="cutting a graph")
    import onnx
    from onnx import TensorProto, helper, utils

    model = onnx.load(str(source))
    texts = [entry.value for entry in model.metadata_props if entry.key == SPEC_KEY]
    if not texts:
        raise ArtifactError(f"{source} is not a cfpose artifact (no {SPEC_KEY!r} in its metadata)")
    spec = ModelSpec.from_json(texts[0])
    start = _planes(model.graph, source)
    (width, height), joints = spec.size_wh, len(spec.skeleton)
    _check_logits(model.graph, source)
    for names in (_LOGITS, _VECTORS):
        model.graph.value_info.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, joints, bins])
            for name, bins in zip(names, spec.bins_xy, strict=True)
        )
    outputs = model.graph.value_info[-2:]
    part = utils.Extractor(model).extract_model([start], list(_LOGITS))
    nodes = [helper.make_node("Identity", ["input"], [start]), *part.graph.node]
    nodes += [
        helper.make_node("Softmax", [logits], [vector], axis=2)
        for logits, vector in zip(_LOGITS, _VECTORS, strict=True)
    ]
    entry = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, height, width])
    graph = helper.make_graph(nodes, "simcc", [entry], outputs, part.graph.initializer)
    cut = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    write_file(target, cut.SerializeToString())
    options = {"mean": None, "std": None, "score_unit": 1.0}
    write_file(target.with_suffix(".json"), json.dumps(options) + "\n")


def _planes(graph: Any, source: Path) -> str:
    """The tensor of BGR planes: crops, cast and transposed."""
    name = graph.input[0].name
    for kind in ("Cast", "Transpose"):
        readers = [n for n in graph.node if n.op_type == kind and n.input[0] == name]
        if len(readers) != 1:
            raise ArtifactError(f"{source} does not begin with Cast and Transpose of its crops")
        name = readers[0].output[0]
    return str(name)


def _check_logits(graph: Any, source: Path) -> None:
    made = {name for node in graph.node for name in node.output}
    if missing := [name for name in _LOGITS if name not in made]:
        raise ArtifactError(
            f"{source} has no values named {', '.join(missing)}, expected SimCC's two; export it "
            f"again"
        )
