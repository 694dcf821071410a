"""The proof of a pose graph whose weights are stored as float16: against its float32 graph."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path

import onnx

from cfpose_export.graph.half_weights import halve_weights
from cfpose_export.graph.rules import read_spec, report_path, write_spec
from cfpose_export.proof.compare import Agreement, Bound, compare_runtimes, judge_agreement
from cfpose_export.proof.crops import Crops
from cfpose_sdk.backends import open_backend
from cfpose_sdk.files import write_file

# Of 99 joints in 100; a joint with two peaks may jump to the other one. The covariances' median.
HALF_BOUND = Bound("p99_px", px=0.25, spread_median=0.02)


def measure_half(
    whole: onnx.ModelProto, half: onnx.ModelProto, crops: Crops, min_confidence: float
) -> Agreement:
    """Both graphs in onnxruntime on the CPU. Judges nothing."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.onnx" for name in ("whole", "half")]
        for path, model in zip(paths, (whole, half), strict=True):
            onnx.save_model(model, path)
        with (
            open_backend(paths[0], device="cpu") as reference,
            open_backend(paths[1], device="cpu") as candidate,
        ):
            agreement = compare_runtimes(reference, candidate, crops, min_confidence)
    return dataclasses.replace(
        agreement,
        reference=f"float32 weights, {agreement.reference}",
        candidate=f"float16 weights, {agreement.candidate}",
    )


def write_proven_half(
    path: Path, whole: onnx.ModelProto, crops: Crops, min_confidence: float
) -> Agreement:
    """Halve the weights of a proven graph, prove it again and write it; the figures go into its
    spec, and to `NAME.gate.json` beside it.

    Raises ExportError, and leaves `path` as it was, when the proof fails.
    """
    half = onnx.ModelProto()
    half.CopyFrom(whole)
    halve_weights(half)
    agreement = measure_half(whole, half, crops, min_confidence)
    judge_agreement(agreement, HALF_BOUND)
    spec = read_spec(whole)
    # rounded up, so that another machine's last digits do not change the file
    gate = {**spec.gate, "half_weights_p99_px": math.ceil(agreement.p99_px * 100) / 100}
    write_spec(half, dataclasses.replace(spec, gate=gate))
    write_file(path, half.SerializeToString(deterministic=True))
    write_file(report_path(path), agreement.to_json() + "\n")
    return agreement
