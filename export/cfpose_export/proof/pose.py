"""The proof of a pose graph: onnxruntime against PyTorch on crops of people, in pixels."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from cfpose_export.graph.rules import LOGITS, POSE_OUTPUTS, report_path, with_outputs, write_spec
from cfpose_export.proof.compare import (
    Bounds,
    compare_joints,
    joined,
    spread_problem,
)
from cfpose_export.proof.crops import Crops
from cfpose_sdk.backends import Backend, open_backend
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.files import write_file
from cfpose_sdk.spec import ModelSpec
from cfpose_training.nets.fused import FusedOutput, FusedPose

BATCHES = (0, 1, 2, 7, 32)
POOL = sum(BATCHES)  # crops that a proof looks at


@dataclass(frozen=True)
class Drift:
    """How far the graph is from torch. Pixels are crop pixels, over the compared joints.

    With argmax a rounding error can move the coarse pose by a whole bin; crops in which that
    happened are counted in `bin_flips` and left out of the pixel figures.
    """

    decode: str
    crops: int  # over all batches
    joints: int  # compared: confidence reached the bound
    mean_px: float
    p99_px: float
    max_px: float
    coarse_max_px: float
    confidence_max: float  # largest difference
    logit_max: float  # largest difference, of any joint in all batches but the largest
    logit_largest: float  # size of any of torch's logits
    bin_flips: int  # coordinates of any joint
    provider: str
    spread_max: float | None = None  # covariances, as of `spread_gap`; None: the graph has none

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def measure(fused: FusedPose, model: onnx.ModelProto, crops: Crops, bounds: Bounds) -> Drift:
    """Run both on the crops, in batches of BATCHES, and compare. Judges nothing.

    The graph that is compared is `model`; a second run of all batches but the largest, with the
    logits as outputs as well, gives their difference. Raises ArtifactError or BackendError when
    the graph cannot be opened or run.
    """
    if len(crops) < POOL:
        raise InputError(f"the proof needs {POOL} crops, got {len(crops)}")
    with tempfile.TemporaryDirectory() as folder:
        plain, probe = Path(folder) / "model.onnx", Path(folder) / "probe.onnx"
        onnx.save_model(model, plain)
        onnx.save_model(with_outputs(model, LOGITS), probe)
        with (
            open_backend(plain, device="cpu") as shipped,
            open_backend(probe, device="cpu") as open_,
        ):
            ends = np.cumsum(BATCHES)
            parts = [crops[end - size : end] for end, size in zip(ends, BATCHES, strict=True)]
            return _compare(
                fused.spec,
                [fused.run(torch.from_numpy(part)) for part in parts],
                [_run(shipped, part) for part in parts],
                [_run(open_, part) for part in parts[:-1]],  # the largest batch adds only time
                bounds,
                shipped.provider,
            )


def judge(drift: Drift, bounds: Bounds) -> None:
    """Raise ExportError when a bound is broken, or when no joint was compared."""
    if drift.joints == 0:
        raise ExportError(
            f"no joint of {drift.crops} crops reaches confidence {bounds.min_confidence}, so the "
            f"comparison says nothing; give photos of people (--photos), or for an untrained "
            f"network --min-confidence 0"
        )
    problems = []
    if not drift.max_px <= bounds.max_px:  # NaN fails too
        problems.append(f"keypoints drift by {drift.max_px:.3g} px, allowed {bounds.max_px:g}")
    if not drift.confidence_max <= bounds.max_confidence:
        problems.append(
            f"confidences differ by {drift.confidence_max:.3g}, allowed {bounds.max_confidence:g}"
        )
    if problem := spread_problem(drift.spread_max, bounds.max_spread):
        problems.append(problem)
    allowed = max(bounds.max_logit, bounds.max_logit_share * drift.logit_largest)
    if drift.decode == "argmax" and not drift.logit_max <= allowed:
        problems.append(f"logits differ by {drift.logit_max:.3g}, allowed {allowed:.3g}")
    if drift.decode != "argmax" and not drift.coarse_max_px <= bounds.max_px:
        problems.append(
            f"coarse poses drift by {drift.coarse_max_px:.3g} px, allowed {bounds.max_px:g}"
        )
    if problems:
        raise ExportError("the graph is not the model: " + "; ".join(problems))


def write_proven(
    path: Path, fused: FusedPose, model: onnx.ModelProto, crops: Crops, bounds: Bounds
) -> Drift:
    """Prove the graph, note the proof in its spec, and write it: whole, or not at all.

    The figures go to `NAME.gate.json` beside it.

    Raises ExportError, and leaves `path` as it was, when the proof fails.
    """
    drift = measure(fused, model, crops, bounds)
    judge(drift, bounds)
    gate = {
        "runtime": "onnxruntime CPU",
        "batches": list(BATCHES),
        "min_confidence": bounds.min_confidence,
        # rounded up, so that another machine's last digits do not change the file
        "max_px": math.ceil(drift.max_px * 100) / 100,
        "bin_flips": drift.bin_flips,
    }
    proven = onnx.ModelProto()
    proven.CopyFrom(model)
    write_spec(proven, dataclasses.replace(fused.spec, gate=gate))
    write_file(path, proven.SerializeToString(deterministic=True))
    write_file(report_path(path), drift.to_json() + "\n")
    return drift


def _compare(
    spec: ModelSpec,
    expected: list[FusedOutput],
    shipped: list[dict[str, NDArray[np.float32]]],
    probed: list[dict[str, NDArray[np.float32]]],
    bounds: Bounds,
    provider: str,
) -> Drift:
    for size, outputs in zip(BATCHES, shipped, strict=True):
        if bad := {name: v.shape for name, v in outputs.items() if len(v) != size}:
            raise ExportError(f"{size} crops gave outputs of shapes {bad}")
    torch_ = {
        name: np.concatenate([getattr(output, name).numpy() for output in expected])
        for name in FusedOutput._fields
    }
    graph, logits = joined(shipped, POSE_OUTPUTS), joined(probed, LOGITS)
    coarse = np.linalg.norm(graph["coarse"] - torch_["coarse"], axis=2)
    compared = torch_["confidence"] >= bounds.min_confidence
    flips = np.zeros(graph["coarse"].shape, dtype=bool)
    if spec.decode == "argmax":
        flips = np.abs(graph["coarse"] - torch_["coarse"]) * spec.split_ratio > 0.5
        # the refiner spreads a flip over the whole person
        compared &= ~flips.any(axis=(1, 2))[:, None]
    joints = compare_joints(torch_, graph, compared)
    return Drift(
        decode=spec.decode,
        crops=joints.crops,
        joints=joints.joints,
        mean_px=joints.mean_px,
        p99_px=joints.p99_px,
        max_px=joints.max_px,
        coarse_max_px=float(coarse[compared].max()) if joints.joints else math.nan,
        confidence_max=joints.confidence_max,
        logit_max=max(
            float(np.abs(logits[name] - torch_[name][: len(logits[name])]).max()) for name in LOGITS
        ),
        logit_largest=max(float(np.abs(torch_[name]).max()) for name in LOGITS),
        bin_flips=int(flips.sum()),
        provider=provider,
        spread_max=joints.spread_max,
    )


def _run(backend: Backend, crops: Crops) -> dict[str, NDArray[np.float32]]:
    return backend.run({"crops": crops})
