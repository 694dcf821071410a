"""The gate of lower precisions: what passes, what is stopped and named, what is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cfpose_export.cli import main
from cfpose_export.graph.rules import load_model, read_spec, report_path, write_spec
from cfpose_export.precision.drift import drift_block
from cfpose_export.precision.gate import (
    AS_FILE,
    LIMITS,
    ROUNDED,
    Limits,
    LowPrecision,
    builder,
    examine,
    problems_of,
    write_gated,
)
from cfpose_export.precision.int8 import Ranges, calibrate, quantise
from cfpose_export.precision.typed import scope
from cfpose_export.proof.compare import Values, compare_graphs
from cfpose_export.proof.crops import ProofSet, read_hard
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.estimator import BUNDLED_MODEL
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import ModelSpec

# random weights: joints everywhere, none of them sure
WIDE = Limits(p99_px=1e3, rounded_p99_px=1e3, oks_mean=0.0, confidence_p99=1.0, floor=0.0)


@pytest.fixture(scope="module")
def proof() -> ProofSet:
    return read_hard(None, ModelSpec("tiny", COCO_17, (64, 96)), 27)


@pytest.fixture
def proven(model: onnx.ModelProto) -> onnx.ModelProto:
    """The tiny graph, said to be proven."""
    write_spec(model, dataclasses.replace(read_spec(model), gate={"max_px": 0.01}))
    return model


@pytest.fixture
def planted(proven: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The values of one layer beyond fp16, undone in the next: in float32 the same model."""
    nodes = list(proven.graph.node)
    convolutions = [
        i for i, n in enumerate(nodes) if n.op_type == "Conv" and "layer1.0" in scope(n)
    ]
    first, second = (nodes[i] for i in convolutions[:2])
    tensors = {t.name: t for t in proven.graph.initializer}
    changes = ((first.input[1], 3e4), (first.input[2], 3e4), (second.input[1], 1 / 3e4))
    for name, factor in changes:
        array = numpy_helper.to_array(tensors[name]) * np.float32(factor)
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    return proven, scope(first)


def test_the_bundled_model_in_fp16() -> None:
    """Real weights on a few real crops."""
    model = load_model(BUNDLED_MODEL)
    crops = read_hard(None, read_spec(model), 18)
    _, report = examine(model, builder(model, "fp16"), "fp16", crops, LIMITS["fp16"])
    assert report.problems == ()
    by_how = {figures.how: figures for figures in report.figures}
    assert by_how.keys() == {AS_FILE, ROUNDED}
    assert by_how[AS_FILE].joints > 200
    assert by_how[AS_FILE].p99_px <= 0.25
    assert by_how[AS_FILE].nonfinite == by_how[ROUNDED].nonfinite == 0
    assert by_how[ROUNDED].oks_mean >= 0.998


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_passing_graph_is_written_with_its_report(
    proven: onnx.ModelProto, proof: ProofSet, tmp_path: Path, precision: LowPrecision
) -> None:
    path = tmp_path / "new" / f"{precision}.onnx"
    ranges = calibrate(proven, proof.crops[:8]) if precision == "int8" else None
    report = write_gated(path, proven, precision, proof, WIDE, ranges=ranges)
    assert sorted(p.name for p in path.parent.iterdir()) == [
        f"{precision}.gate.json",
        f"{precision}.onnx",
    ]
    spec = read_spec(load_model(path))
    assert spec.precision == precision
    assert spec.gate["crops"] == 27
    saved = json.loads(report_path(path).read_text())
    assert saved["artifact_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert saved["reference_sha256"] == spec.gate["reference_sha256"] == report.reference_sha256
    assert sum(saved["kinds"].values()) == 27
    first = path.read_bytes()
    write_gated(path, proven, precision, proof, WIDE, ranges=ranges)
    assert path.read_bytes() == first


def test_an_overflow_is_stopped_and_named_and_kept(
    planted: tuple[onnx.ModelProto, str], proof: ProofSet, tmp_path: Path
) -> None:
    model, culprit = planted
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the good one")
    with pytest.raises(ExportError, match=rf"not finite.*{culprit} \(overflows\).*--auto-keep"):
        write_gated(path, model, "fp16", proof, WIDE)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"the good one"
    report = write_gated(path, model, "fp16", proof, WIDE, auto_keep=True)
    assert culprit in report.kept
    assert len(report.kept) <= 3
    assert all(figures.nonfinite == 0 for figures in report.figures)
    assert read_spec(load_model(path)).gate["kept"] == list(report.kept)


def test_a_drifting_layer_is_named(proven: onnx.ModelProto, proof: ProofSet) -> None:
    """Weights of one layer that quantise badly: one huge channel beside many small ones."""
    target = next(
        n for n in proven.graph.node if n.op_type == "Conv" and "stage2.0.branches.0" in scope(n)
    )
    tensors = {t.name: t for t in proven.graph.initializer}
    array = numpy_helper.to_array(tensors[target.input[1]]).copy()
    array[:, 0] *= 1e3  # per-channel scales are by output channel, so this ruins all the others
    tensors[target.input[1]].CopyFrom(numpy_helper.from_array(array, target.input[1]))
    build = builder(proven, "int8", calibrate(proven, proof.crops[:8]))
    limits = dataclasses.replace(WIDE, oks_mean=0.99999)
    _, report = examine(proven, build, "int8", proof, limits)
    assert report.problems
    assert scope(target) in [c.module for c in report.culprits[:2]]


def test_only_a_proven_float32_graph_is_a_reference(
    model: onnx.ModelProto, proof: ProofSet, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="carries no proof"):
        write_gated(tmp_path / "a.onnx", model, "fp16", proof)
    write_spec(model, dataclasses.replace(read_spec(model), precision="fp16"))
    with pytest.raises(InputError, match="must be float32"):
        write_gated(tmp_path / "a.onnx", model, "fp16", proof)
    with pytest.raises(InputError, match="int8 needs calibrated ranges"):
        builder(model, "int8")
    assert not list(tmp_path.iterdir())


def test_no_sure_joint_says_nothing(
    proven: onnx.ModelProto, proof: ProofSet, tmp_path: Path
) -> None:
    limits = dataclasses.replace(WIDE, floor=1.1)
    with pytest.raises(ExportError, match="says nothing"):
        write_gated(tmp_path / "a.onnx", proven, "fp16", proof, limits)


def values(proof: ProofSet, shift: float = 0.0, confidence: float = 0.9) -> Values:
    count = len(proof.crops)
    poses = np.full((count, 17, 2), 20.0, np.float32)
    poses[..., 0] += shift
    flat = np.full((count, 17, 8), 1.0, np.float32)
    return {
        "keypoints": poses,
        "coarse": poses,
        "confidence": np.full((count, 17), confidence, np.float32),
        "x_logits": flat,
        "y_logits": flat,
    }


def test_figures_of_a_known_shift(proof: ProofSet) -> None:
    """OKS by its definition, in float64."""
    spec = ModelSpec("tiny", COCO_17, (64, 96))
    got = values(proof, shift=3.0, confidence=0.85)
    figures = compare_graphs("test", values(proof), got, proof, spec, 0.3)
    assert figures.mean_px == figures.p99_px == figures.max_px == 3.0
    assert figures.confidence_max == pytest.approx(0.05, abs=1e-6)
    variance = 4 * np.square(spec.skeleton.oks_sigmas)
    oks = np.exp(-9.0 / (2 * variance * proof.areas[:, None])).mean(axis=1)
    assert figures.oks_mean == pytest.approx(oks.mean(), abs=1e-9)
    assert figures.oks_min == pytest.approx(oks.min(), abs=1e-9)
    assert figures.bin_flips == 0
    argmax = dataclasses.replace(spec, decode="argmax")
    flipped = compare_graphs("test", values(proof), got, proof, argmax, 0.3)
    assert flipped.bin_flips == 27 * 17


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize(
    ("factor", "problem"), [(1.0, None), (2.5, "covariances differ by 1.5"), (-1.0, "not positive")]
)
def test_a_wrong_covariance_is_a_problem(
    proof: ProofSet, precision: LowPrecision, factor: float, problem: str | None
) -> None:
    """A few joints that jump between two peaks are none; NaN is counted as not finite besides."""
    spec, one = ModelSpec("tiny", COCO_17, (64, 96)), np.eye(2, dtype=np.float32)
    right = np.tile(4 * one, (len(proof.crops), 17, 1, 1))
    wrong = factor * right
    wrong[0, 0] *= 30
    expected = {**values(proof), "covariance": right}
    figures = compare_graphs(AS_FILE, expected, {**expected, "covariance": wrong}, proof, spec, 0.3)
    found = problems_of(figures, LIMITS[precision])
    assert [problem in text for text in found] == ([] if problem is None else [True])


def test_a_nan_is_infinitely_far(proof: ProofSet) -> None:
    spec = ModelSpec("tiny", COCO_17, (64, 96))
    broken = dict(values(proof))
    broken["keypoints"] = broken["keypoints"].copy()
    broken["keypoints"][0, 0, 0] = np.nan
    figures = compare_graphs("test", values(proof), broken, proof, spec, 0.3)
    assert figures.nonfinite == 1
    assert figures.max_px == np.inf
    assert figures.oks_mean < 1.0


def test_the_hard_crops(proof: ProofSet) -> None:
    """Every kind is there, twice the same, and does what it says."""
    again = read_hard(None, ModelSpec("t", COCO_17, (64, 96)), 45)
    np.testing.assert_array_equal(again.crops[:27], proof.crops)
    other = read_hard(None, ModelSpec("t", COCO_17, (64, 96)), 45, seed=1)
    assert (other.crops[9:] != again.crops[9:]).any(axis=(1, 2, 3)).all()
    kinds = np.array(again.kinds)
    assert list(dict.fromkeys(again.kinds)) == ["framed", "moved", "dark", "tiny", "cut"]
    bright = {k: again.crops[kinds == k].mean() for k in ("framed", "dark")}
    assert bright["dark"] < 0.2 * bright["framed"]
    sharp = {
        k: np.abs(np.diff(again.crops[kinds == k].astype(int), axis=2)).mean()
        for k in ("moved", "tiny")
    }
    assert sharp["tiny"] < 0.6 * sharp["moved"]
    assert (again.areas > 0).all()
    assert (again.areas < 64 * 96).all()


@pytest.fixture
def ranges(proven: onnx.ModelProto, proof: ProofSet) -> Ranges:
    return calibrate(proven, proof.crops[:8])


def test_int8_is_symmetric_per_channel_and_keeps_scopes(
    proven: onnx.ModelProto, ranges: Ranges
) -> None:
    model = quantise(proven, ranges)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    scales = 0
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    for node in (n for n in model.graph.node if n.op_type == "Conv"):
        weights = makers.get(node.input[1])
        parts = scope(node).split(".")
        if weights is None:
            assert "backbone" not in parts or {"layer1", "bn1", "bn2"} & set(parts)
            continue
        assert parts[1] == "backbone"
        assert constants[weights.input[0]].dtype == np.int8
        assert constants[weights.input[1]].shape == constants[weights.input[0]].shape[:1]
        assert constants[node.input[2]].dtype == np.float32
        scales += 1
    assert scales > 10
    assert sum(bool(n.metadata_props) for n in model.graph.node) == sum(
        bool(n.metadata_props) for n in proven.graph.node
    )
    assert read_spec(model).precision == "int8"


def test_int8_leaves_nothing_behind(
    proven: onnx.ModelProto, proof: ProofSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = quantise(proven, calibrate(proven, proof.crops[:4]))
    second = quantise(proven, calibrate(proven, proof.crops[:4]))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="needs crops to calibrate on"):
        calibrate(proven, proof.crops[:0])


def test_the_command(
    proven: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "fp32.onnx", tmp_path / "fp16.onnx"
    onnx.save_model(proven, source)
    call = ["lower", str(source), "-o", str(target), "--precision", "fp16", "--crops", "12"]
    loose = ["--min-confidence", "0", "--max-p99", "99", "--max-rounded-p99", "99"]
    assert main([*call, *loose, "--min-oks", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    target.unlink()
    assert main([*call, *loose, "--min-oks", "1"]) == 1
    assert "mean OKS is" in capsys.readouterr().err
    assert not target.exists()


def test_the_drift_command_and_its_table(
    proven: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, record = tmp_path / "tiny.onnx", tmp_path / "drift.json"
    onnx.save_model(proven, source)
    call = ["drift", str(source), "--crops", "9", "--min-confidence", "0", "--no-culprits"]
    assert main([*call, "--precision", "fp16", "--json", str(record)]) == 0
    data = json.loads(record.read_text())
    (model,) = data["models"]
    assert [row["precision"] for row in model["rows"]] == ["fp32", "fp16", "fp16"]
    block = drift_block(data)
    assert "| tiny | fp16 | the file, onnxruntime CPU |" in block
    assert f"| {model['rows'][1]['figures']['mean_px']:.3f} |" in block
    capsys.readouterr()
