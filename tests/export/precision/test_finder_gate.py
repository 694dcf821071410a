"""A lowered finder is written only when its boxes stay where float32 puts them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cfpose_export.cli import main
from cfpose_export.graph.frame_finder import frame_finder
from cfpose_export.graph.rules import element_types, load_model, read_finder_spec, scopes
from cfpose_export.precision.finder_gate import lowered_finder
from cfpose_export.precision.typed import modules_of, plan, scope
from cfpose_export.proof.runtimes import FinderAgreement, FinderBound, judge_finders, nearest_gaps
from cfpose_sdk.detectors.base import BUNDLED_FINDER
from cfpose_sdk.errors import ExportError, InputError


@pytest.fixture(scope="module")
def bundled() -> onnx.ModelProto:
    return load_model(BUNDLED_FINDER)


def test_the_bundled_finder_passes_in_fp16(tmp_path: Path) -> None:
    path = tmp_path / "finder.onnx"
    assert main(["lower", "default-finder", "--precision", "fp16", "-o", str(path)]) == 0
    model = load_model(path)
    spec = read_finder_spec(model)
    assert spec.precision == "fp16"
    assert max(spec.gate["max_px"].values()) <= 1
    report = json.loads(path.with_suffix(".gate.json").read_text())
    assert min(f["candidates"] for f in report["figures"].values()) > 10
    types, half = element_types(model), onnx.TensorProto.FLOAT16
    low = {scopes(n).split("'")[5] for n in model.graph.node if types.get(n.output[0]) == half
           and scopes(n).count("'") > 5}  # fmt: skip
    assert "network.body" in low
    assert not any(module.startswith(("network.box", "sampler")) for module in low)
    assert [v.name for v in frame_finder(model).graph.input] == ["frame"]


def test_one_that_drifts_is_refused(bundled: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"is not the model \(.*boxes differ by more than"):
        lowered_finder(bundled, "fp16", None, bound=FinderBound(1e-6, 1e-6))
    wild = onnx.ModelProto()
    wild.CopyFrom(bundled)
    for tensor in wild.graph.initializer:  # what fp16 holds, and its sums do not
        if tensor.name == "network.laterals.0.0.weight":
            values = numpy_helper.to_array(tensor)
            scaled = np.asarray(values / np.abs(values).max() * 6e4, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    with pytest.raises(ExportError, match="is not the model"):
        lowered_finder(wild, "fp16", None)
    with pytest.raises(InputError, match="finders are lowered to one of"):
        lowered_finder(bundled, "int8", None)
    line = ["lower", "default-finder", "--precision", "fp16", "-o", str(tmp_path / "x.onnx")]
    with pytest.raises(InputError, match="own limits"):
        main([*line, "--max-p99", "1"])
    assert list(tmp_path.iterdir()) == []


def moved(*px: float, score: float = 0.0, nonfinite: int = 0) -> FinderAgreement:
    """An agreement of candidates whose boxes moved so far."""
    return FinderAgreement("a", "b", 2, len(px), max(px, default=0.0), score, px, nonfinite)


@pytest.mark.parametrize(
    ("agreement", "said"),
    [
        (moved(), "the comparison says nothing"),
        (moved(0.5, 1.5, 0.1), r"1 of 3 boxes differ by more than 1 .*\(allowed 0; the most 1.5\)"),
        (moved(0.5, score=0.5), "scores by 0.5"),
        (moved(float("nan")), "1 of 1 boxes differ"),
        (moved(0.0, nonfinite=1), "1 numbers are not finite"),
    ],
)
def test_what_is_judged(agreement: FinderAgreement, said: str) -> None:
    bound = FinderBound(1.0, 0.1)
    judge_finders(moved(0.9, score=0.05), bound)
    with pytest.raises(ExportError, match=said):
        judge_finders(agreement, bound)


def test_a_share_of_the_boxes_may_be_others() -> None:
    """Of two candidates that tie, a low precision may take the other one."""
    bound = FinderBound(1.0, 0.1, far=0.05)
    judge_finders(moved(9.0, *[0.5] * 19), bound)
    with pytest.raises(ExportError, match=r"2 of 20 .*allowed 1"):
        judge_finders(moved(9.0, 1.5, *[0.5] * 18), bound)


def test_the_first_layers_stay_float32_in_bf16(bundled: onnx.ModelProto) -> None:
    """Else boxes move by ten pixels; with them the gate lets the bundled finder through."""
    kept = {"network.body", "network.body.bn0", "network.body.blocks.1.bn1", "network.heat.1"}
    assert kept <= {scope(node) for node in bundled.graph.node}
    for precision, inside in (("fp16", True), ("bf16", False)):
        low = modules_of(bundled, plan(bundled, precision).low)
        assert all((module in low) is inside for module in kept)
        assert "network.body.blocks.2.bn1" in low
    report = lowered_finder(bundled, "bf16", None)[1]
    assert report.bound.far == 0.05


def test_a_box_that_is_gone_is_infinitely_far() -> None:
    boxes, scores = np.array([[0, 0, 9, 9]], np.float32), np.array([0.9], np.float32)
    far, gap = nearest_gaps(boxes, scores, boxes[:0], scores[:0])
    assert np.isinf(far).all()
    assert np.isinf(gap).all()
