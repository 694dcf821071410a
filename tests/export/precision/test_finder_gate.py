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
    with pytest.raises(ExportError, match=r"is not the model \(.*boxes differ by"):
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


@pytest.mark.parametrize(
    ("agreement", "said"),
    [
        (FinderAgreement("a", "b", 2, 0, 0.0, 0.0), "the comparison says nothing"),
        (FinderAgreement("a", "b", 2, 5, 1.5, 0.0), "boxes differ by 1.5"),
        (FinderAgreement("a", "b", 2, 5, 0.5, 0.5), "scores by 0.5"),
        (FinderAgreement("a", "b", 2, 5, float("nan"), 0.0), "boxes differ by nan"),
        (FinderAgreement("a", "b", 2, 5, 0.0, 0.0, nonfinite=1), "1 numbers are not finite"),
    ],
)
def test_what_is_judged(agreement: FinderAgreement, said: str) -> None:
    bound = FinderBound(1.0, 0.1)
    judge_finders(FinderAgreement("a", "b", 2, 5, 0.9, 0.05), bound)
    with pytest.raises(ExportError, match=said):
        judge_finders(agreement, bound)


def test_a_box_that_is_gone_is_infinitely_far() -> None:
    boxes, scores = np.array([[0, 0, 9, 9]], np.float32), np.array([0.9], np.float32)
    far, gap = nearest_gaps(boxes, scores, boxes[:0], scores[:0])
    assert np.isinf(far).all()
    assert np.isinf(gap).all()
