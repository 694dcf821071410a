"""Adapter of rtmlib's RTMPose for `serve.py`: SimCC graphs, (1, 3, H, W) → x and y vectors.

A file NAME.json beside NAME.onnx may give `mean` and `std` (of BGR 0..255, null for a graph that
normalises itself); without it, rtmlib's own. Its `score_unit` is what a score is divided by: 1 for
softmax peaks, and 16 without it, for raw ones. Its `detector` may name rtmlib's YOLOX: `path`, and
YOLOX's options; `find` then runs it. Runs where rtmlib is installed; cfpose need not be.
"""

from __future__ import annotations

import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rtmlib import RTMPose

SCORE_UNIT = 16.0  # raw SimCC peaks may exceed 1; one factor for all keeps their order


class Model:
    """One RTMPose network; rtmlib runs it box by box."""

    def __init__(self, path: str, device: str, threads: int) -> None:
        sidecar = Path(path).with_suffix(".json")
        options = json.loads(sidecar.read_text()) if sidecar.is_file() else {}
        detector = options.pop("detector", None)
        self.score_unit = float(options.pop("score_unit", SCORE_UNIT))
        width, height = _size_wh(path)
        chosen = "cuda" if device == "cuda" else "cpu"
        self.pose = RTMPose(path, model_input_size=(width, height), device=chosen, **options)
        _limit(self.pose, path, threads)
        self.detector = None if detector is None else _yolox(chosen, threads, **detector)
        self.facts = {
            "provider": self.pose.session.get_providers()[0],
            "versions": {
                name: importlib.metadata.version(name) for name in ("rtmlib", "onnxruntime")
            },
        }

    def find(self, image: Any) -> Any:
        """(M, 4) xyxy boxes of the detector that the file beside the graph names."""
        if self.detector is None:
            raise ValueError("no detector is named in the .json file beside the graph")
        return self.detector(image)

    def predict(self, image: Any, boxes: Any) -> tuple[Any, Any]:
        """As RTMPose.__call__, with its three steps timed."""
        spans, poses = {"crop": 0.0, "infer": 0.0, "post": 0.0}, []
        for box in boxes:
            clock = [time.perf_counter()]
            crop, centre, scale = self.pose.preprocess(image, box)
            clock.append(time.perf_counter())
            outputs = self.pose.inference(crop)
            clock.append(time.perf_counter())
            poses.append(self.pose.postprocess(outputs, centre, scale))
            clock.append(time.perf_counter())
            for stage, span in zip(spans, np.diff(clock) * 1e3, strict=True):
                spans[stage] += float(span)
        self.spans_ms = spans
        xy, scores = (np.concatenate(parts) for parts in zip(*poses, strict=True))
        return xy, np.clip(scores / self.score_unit, 0, 1)


def _size_wh(path: str) -> tuple[int, int]:
    height, width = onnxruntime.InferenceSession(path).get_inputs()[0].shape[2:]
    return int(width), int(height)


def _limit(tool: Any, path: str, threads: int) -> None:
    """Open its session anew with `threads` threads; rtmlib has no switch for it."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    providers = tool.session.get_providers()
    tool.session = onnxruntime.InferenceSession(path, settings, providers=providers)


def _yolox(device: str, threads: int, *, path: str, **options: Any) -> Any:
    from rtmlib import YOLOX

    width, height = _size_wh(path)
    detector = YOLOX(path, model_input_size=(height, width), device=device, **options)
    _limit(detector, path, threads)
    return detector


def open_model(path: str, *, device: str, threads: int) -> Model:
    """Open a SimCC graph with rtmlib."""
    return Model(path, device, threads)
