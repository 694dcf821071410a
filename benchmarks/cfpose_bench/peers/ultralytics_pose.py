"""Adapter of an ultralytics pose model (.pt) for `serve.py`; it detects the people itself.

ultralytics is AGPL-3.0: it stays in an environment of its own, and cfpose does not import it.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from ultralytics import YOLO

THRESHOLD = 0.001  # of ultralytics' own evaluation: AP needs the poses of low score too


class Model:
    """One network over whole photos."""

    one_stage = True

    def __init__(self, path: str, device: str, threads: int) -> None:
        if threads and device != "cuda":
            import torch

            torch.set_num_threads(threads)
        self.device = "cuda:0" if device == "cuda" else "cpu"
        self.network = YOLO(path)
        self.facts = {
            "provider": f"torch {self.device}",
            "versions": {"ultralytics": importlib.metadata.version("ultralytics")},
        }

    def predict(self, image: Any, boxes: None) -> tuple[Any, Any, Any, Any]:
        """Poses by the network's own boxes."""
        (result,) = self.network.predict(image, conf=THRESHOLD, device=self.device, verbose=False)
        spent = result.speed
        self.spans_ms = {
            "crop": spent["preprocess"], "infer": spent["inference"], "post": spent["postprocess"]
        }  # fmt: skip
        keypoints = result.keypoints.data.cpu().numpy()
        people = result.boxes
        return (
            keypoints[..., :2],
            keypoints[..., 2],
            people.xyxy.cpu().numpy(),
            people.conf.cpu().numpy(),
        )


def open_model(path: str, *, device: str, threads: int) -> Model:
    """Open a .pt file with ultralytics."""
    return Model(path, device, threads)
