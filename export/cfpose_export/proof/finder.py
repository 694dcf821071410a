"""The proof of a finder's graph: boxes and scores in onnxruntime against PyTorch, on photos."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from cfpose_export.graph.half_weights import has_half_weights
from cfpose_export.proof.compare import Floats, JointDifferences
from cfpose_export.proof.runtimes import nearest_gaps, photo_paths
from cfpose_sdk.backends import open_backend
from cfpose_sdk.boxes import letterbox
from cfpose_sdk.errors import ExportError
from cfpose_sdk.files import write_file
from cfpose_sdk.media.image import read_image
from cfpose_training.nets.fused import FusedFinder

MAX_PX = 0.05
MAX_SCORE = 1e-3
MAX_HALF_PX = 0.5  # of a graph whose weights were rounded to float16
MAX_HALF_SCORE = 5e-3


@dataclass(frozen=True)
class FinderDrift:
    """How far a finder's graph is from torch, over the best candidates of every photo."""

    photos: int
    candidates: int
    max_px: float  # letterbox pixels, of any box side
    score_max: float
    half_weights: bool = False  # whether the graph stores float16

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def measure_finder(fused: FusedFinder, model: onnx.ModelProto, folder: Path | None) -> FinderDrift:
    """Compare both on the photos of a folder, one by one. None: the demo photos. A graph that takes
    cut letterboxes is given whole and cut ones.

    Raises InputError when the folder holds no JPEG or PNG.
    """
    paths = photo_paths(folder)
    px: list[Floats] = [np.zeros(0)]
    score: list[Floats] = [np.zeros(0)]
    with tempfile.TemporaryDirectory() as temporary:
        written = Path(temporary) / "finder.onnx"
        onnx.save_model(model, written)
        with open_backend(written, device="cpu") as backend, torch.inference_mode():
            cuts = (False, True) if backend.input_shapes["images"][1] is None else (False,)
            for path, cut in itertools.product(paths, cuts):
                size_wh, grey = fused.spec.size_wh, fused.spec.pad_value
                canvas, _ = letterbox(read_image(path), size_wh, grey, cut=cut)
                boxes, scores = (v[0].numpy() for v in fused(torch.from_numpy(canvas[None])))
                got = backend.run({"images": canvas[None]})
                far, gap = nearest_gaps(boxes, scores, got["boxes"][0], got["scores"][0])
                px.append(far)
                score.append(gap)
    best = JointDifferences(len(paths), np.concatenate(px), np.concatenate(score))
    half = has_half_weights(model)
    if not best.joints:
        return FinderDrift(len(paths), 0, 0.0, 0.0, half)
    return FinderDrift(len(paths), best.joints, best.max_px, best.confidence_max, half)


def judge_finder(drift: FinderDrift) -> None:
    """Raise ExportError unless the drift keeps to the bounds; NaN does not."""
    max_px = MAX_HALF_PX if drift.half_weights else MAX_PX
    max_score = MAX_HALF_SCORE if drift.half_weights else MAX_SCORE
    if not (drift.max_px <= max_px and drift.score_max <= max_score):
        raise ExportError(
            f"the graph is not the model: boxes drift by {drift.max_px:.3g} px (allowed {max_px}), "
            f"scores by {drift.score_max:.3g} (allowed {max_score})"
        )


def write_proven_finder(
    path: Path, fused: FusedFinder, model: onnx.ModelProto, folder: Path | None
) -> FinderDrift:
    """Prove the graph and write it; `path` stays as it was when the proof fails."""
    drift = measure_finder(fused, model, folder)
    judge_finder(drift)
    write_file(path, model.SerializeToString(deterministic=True))
    return drift
