"""What the exported graph is made of, and that it is written the same way twice."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from cfpose_export.graph.rules import (
    LOGITS,
    OPSET,
    POSE_OUTPUTS,
    SCOPES_KEY,
    check_graph,
    element_types,
    read_spec,
    write_spec,
)
from cfpose_sdk.errors import ExportError
from cfpose_sdk.estimator import BUNDLED_MODEL
from cfpose_sdk.spec import SPEC_KEY
from cfpose_training.nets.fused import FusedPose


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def test_surface(model: onnx.ModelProto) -> None:
    def shape(value: onnx.ValueInfoProto) -> list[object]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    (crops,) = model.graph.input
    assert crops.name == "crops"
    assert crops.type.tensor_type.elem_type == TensorProto.UINT8
    assert shape(crops) == ["N", 96, 64, 3]
    assert {o.name: shape(o) for o in model.graph.output} == {
        "keypoints": ["N", 17, 2],
        "confidence": ["N", 17],
        "covariance": ["N", 17, 2, 2],
        "coarse": ["N", 17, 2],
    }
    assert {o.type.tensor_type.elem_type for o in model.graph.output} == {TensorProto.FLOAT}


def test_grid_sample_is_bilinear_float32_below_opset_20(model: onnx.ModelProto) -> None:
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET}
    types = element_types(model)
    lookups = [node for node in model.graph.node if node.op_type == "GridSample"]
    assert len(lookups) == 3
    for node in lookups:
        assert attributes(node) == {
            "mode": b"bilinear",
            "padding_mode": b"border",
            "align_corners": 1,
        }
        assert [types[name] for name in node.input] == [TensorProto.FLOAT, TensorProto.FLOAT]


@pytest.fixture(params=["tiny", "bundled"])
def folded(request: pytest.FixtureRequest, model: onnx.ModelProto) -> onnx.ModelProto:
    """The tiny graph, and one whose weights are too large for the exporter's own folding."""
    return model if request.param == "tiny" else onnx.load_model(BUNDLED_MODEL)


def test_nothing_is_left_to_compute_from_constants(folded: onnx.ModelProto) -> None:
    constants = {tensor.name for tensor in folded.graph.initializer}
    idle = [node.name for node in folded.graph.node if set(node.input) <= constants | {""}]
    assert idle == []
    counts = Counter(node.op_type for node in folded.graph.node)
    assert counts["Constant"] == counts["EyeLike"] == counts["AffineGrid"] == 0


def test_batch_norm_is_folded_into_convolutions(
    request: pytest.FixtureRequest, folded: onnx.ModelProto
) -> None:
    rest = [node for node in folded.graph.node if node.op_type == "BatchNormalization"]
    scopes = [entry.value for node in rest for entry in node.metadata_props]
    assert all("'refiner'" in scope for scope in scopes)
    # those of a sum in the refiner, which the bundled model has not
    assert len(scopes) == {"tiny": 4, "bundled": 0}[request.node.callspec.params["folded"]]


def test_nodes_keep_their_scope_and_nothing_else(model: onnx.ModelProto) -> None:
    keys = {entry.key for node in model.graph.node for entry in node.metadata_props}
    assert keys == {SCOPES_KEY}
    scopes = " ".join(e.value for node in model.graph.node for e in node.metadata_props)
    for part in ("normalise", "pose.backbone", "pose.head", "refiner.adaptation"):
        assert f"'{part}'" in scopes


def test_no_local_path_or_trace_is_written(model: onnx.ModelProto) -> None:
    data = model.SerializeToString(deterministic=True)
    for word in (b"stack_trace", b"site-packages", b".py", str(Path.home()).encode() + b"/"):
        assert word not in data
    assert [entry.key for entry in model.metadata_props] == [SPEC_KEY]
    assert model.producer_name == "cfpose"


def test_spec_round_trip(fused: FusedPose, model: onnx.ModelProto) -> None:
    assert read_spec(model) == fused.spec
    changed = dataclasses.replace(fused.spec, metrics={"AP": 0.25})
    write_spec(model, changed)
    assert read_spec(model) == changed
    del model.metadata_props[:]
    with pytest.raises(ExportError, match=r"carries no cfpose\.spec"):
        read_spec(model)


def test_same_weights_give_the_same_bytes(model: onnx.ModelProto, tmp_path: Path) -> None:
    """Also in another process."""
    script = (
        "import sys, runpy; from pathlib import Path\n"
        f"names = runpy.run_path({str(Path(__file__).parents[1] / 'conftest.py')!r})\n"
        "from cfpose_export.graph.trace import build_pose\n"
        "data = build_pose(names['fuse']()).SerializeToString(deterministic=True)\n"
        "Path(sys.argv[1]).write_bytes(data)\n"
    )
    written = tmp_path / "model.onnx"
    subprocess.run([sys.executable, "-c", script, str(written)], check=True)
    assert written.read_bytes() == model.SerializeToString(deterministic=True)


def test_the_logits_stay_inside(model: onnx.ModelProto) -> None:
    inside = {name for node in model.graph.node for name in node.output}
    assert set(LOGITS) <= inside
    assert not set(LOGITS) & {o.name for o in model.graph.output}


@pytest.mark.parametrize(
    ("attribute", "value"), [("mode", b"nearest"), ("align_corners", 0), ("padding_mode", b"zeros")]
)
def test_another_grid_sample_is_refused(
    model: onnx.ModelProto, attribute: str, value: object
) -> None:
    node = next(n for n in model.graph.node if n.op_type == "GridSample")
    kept = attributes(node) | {attribute: value}
    del node.attribute[:]
    node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in kept.items())
    with pytest.raises(ExportError, match=attribute):
        check_graph(model, "crops", POSE_OUTPUTS)


def test_half_precision_lookup_is_refused(model: onnx.ModelProto) -> None:
    index, node = next((i, n) for i, n in enumerate(model.graph.node) if n.op_type == "GridSample")
    half = [onnx.helper.make_node("Cast", [x], [f"{x}_half"], to=10) for x in node.input]
    node.input[0], node.input[1] = half[0].output[0], half[1].output[0]
    back = onnx.helper.make_node("Cast", [f"{node.output[0]}_half"], [node.output[0]], to=1)
    node.output[0] = f"{node.output[0]}_half"
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:index], *half, nodes[index], back, *nodes[index + 1 :]])
    with pytest.raises(ExportError, match="expected float32 for both"):
        check_graph(model, "crops", POSE_OUTPUTS)


def test_a_later_opset_is_refused(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 20
    with pytest.raises(ExportError, match=r"expected \{'': 18\}"):
        check_graph(model, "crops", POSE_OUTPUTS)


def test_missing_outputs_and_unloved_operators_are_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match="expected crops →"):
        check_graph(model, "crops", ("keypoints",))
    model.graph.node.append(onnx.helper.make_node("NonZero", ["coarse"], ["where"]))
    with pytest.raises(ExportError, match="NonZero"):
        check_graph(model, "crops", POSE_OUTPUTS)


def test_weights_are_those_of_the_network(fused: FusedPose, model: onnx.ModelProto) -> None:
    """A spot check that constants come from the checkpoint: the head's bias."""
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    bias = fused.pose.head.mlp_head_x.bias.numpy()
    assert any(v.shape == bias.shape and np.array_equal(v, bias) for v in stored.values())
