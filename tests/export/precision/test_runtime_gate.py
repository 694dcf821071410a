"""judge: a runtime's answers by the gate's limits, of pose models and finders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cfpose_export.cli import main
from cfpose_export.graph.rules import load_model, read_spec, write_spec
from cfpose_export.precision.runtime_gate import judge_runtime
from cfpose_sdk.backends.bundled import BUNDLED_FINDER, BUNDLED_MODEL
from cfpose_sdk.errors import InputError

CROPS = 14  # the demo photos' people


def test_float32_in_openvino_is_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino", reason="OpenVINO has no wheel for this platform")
    words = ["judge", "default", "--device", "openvino", "--crops", str(CROPS), "--threads", "1"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert found["precision"] == "fp32"
    assert found["provider"] == "OpenVINO CPU f32"
    assert found["figures"]["joints"] > 100
    assert found["figures"]["p99_px"] < 0.05


def moved(path: Path, by: float) -> Path:
    """The bundled model, whose last layer's bias says something else."""
    model = load_model(BUNDLED_MODEL)
    (bias,) = (t for t in model.graph.initializer if t.name == "pose.head.heat.out.bias")
    value = numpy_helper.to_array(bias).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, by, value.shape).astype(np.float32)
    bias.CopyFrom(numpy_helper.from_array(value + noise, bias.name))
    onnx.save_model(model, path)
    return path


def test_another_model_is_not_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = moved(tmp_path / "other.onnx", 0.5)
    assert main(["judge", str(other), "--crops", str(CROPS), "--threads", "1"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["problems"]
    assert "CPUExecutionProvider is not the model: " in said.err


def test_limits_are_those_of_the_precision(tmp_path: Path) -> None:
    """What breaks float32's bounds may keep to int8's: the spec says which count."""
    other = moved(tmp_path / "other.onnx", 0.5)
    assert judge_runtime(other, crops=CROPS, threads=1).problems
    model = load_model(other)
    write_spec(model, dataclasses.replace(read_spec(model), precision="int8"))
    onnx.save_model(model, other)
    found = judge_runtime(other, BUNDLED_MODEL, crops=CROPS, threads=1)
    assert (found.precision, found.problems) == ("int8", ())


def test_finders_are_judged_by_their_boxes() -> None:
    found = judge_runtime(BUNDLED_FINDER, threads=1)
    assert found.problems == ()
    assert found.figures["max_px"] == 0.0
    assert found.figures["candidates"] > 2


def test_the_reference_is_float32(tmp_path: Path) -> None:
    model = load_model(BUNDLED_MODEL)
    write_spec(model, dataclasses.replace(read_spec(model), precision="bf16"))
    onnx.save_model(model, tmp_path / "low.onnx")
    with pytest.raises(InputError, match="reference must be float32"):
        judge_runtime(BUNDLED_MODEL, tmp_path / "low.onnx", threads=1)
