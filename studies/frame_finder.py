"""Does a finder that makes its own letterbox find the same people? Asked on the development photos.

python studies/frame_finder.py DATA/coco/images/val studies/results/frame-finder.json

Whole letterboxes are made with OpenCV, those of the graph with two products; they differ by a grey
level in some pixels. Every box of the first is paired with the nearest of the graph's. A box that
lies further than a letterbox pixel is another one of two overlapping candidates, of which
suppression keeps the better; one that is gone, or new, has a score at the threshold. AP, by
`cfpose-export frame` for both models and then
`cfpose-bench --dataset coco-val --boxes gt --boxes detector --detector whole-finder.onnx --model
whole.onnx --model default`, was written into the same file by hand, when the default's letterboxes
were whole.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cfpose_export.graph.frame_finder import frame_finder
from cfpose_export.graph.rules import load_model, whole_letterboxes
from cfpose_sdk.boxes import fitting
from cfpose_sdk.detectors.base import BUNDLED_FINDER, PersonFinder
from cfpose_sdk.media.image import read_image

PAIRED_PX = 20  # letterbox pixels; further away is another person


def compare(folder: Path) -> dict[str, Any]:
    """Both finders on the photos of a folder; pixels are the letterbox's."""
    paths, far, scores, gone, new = sorted(folder.glob("*.jpg")), list[float](), list[float](), 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        framed, boxed = Path(temporary) / "frame.onnx", Path(temporary) / "whole.onnx"
        onnx.save_model(frame_finder(load_model(BUNDLED_FINDER)), framed)
        onnx.save_model(whole_letterboxes(load_model(BUNDLED_FINDER)), boxed)
        with (
            PersonFinder(boxed, device="cpu", threads=1) as plain,
            PersonFinder(framed, device="cpu", threads=1) as whole,
        ):
            for path in paths:
                image = read_image(path)
                ours, theirs = plain(image), whole(image)
                scale, used = fitting(image.shape, plain.spec.size_wh), set[int]()
                for box, score in zip(ours.boxes, ours.scores, strict=True):
                    gaps = np.abs(theirs.boxes - box).max(axis=1, initial=0.0) * scale
                    if len(gaps) == 0 or gaps.min() > PAIRED_PX:
                        gone += 1
                        continue
                    nearest = int(gaps.argmin())
                    used.add(nearest)
                    far.append(float(gaps[nearest]))
                    scores.append(abs(float(theirs.scores[nearest] - score)))
                new += len(theirs) - len(used)
    return {
        "finder": BUNDLED_FINDER.stem,
        "photos": len(paths),
        "paired": len(far),
        "further_than_1_px": int((np.array(far) > 1).sum()),
        "p95_px": float(np.quantile(far, 0.95)),
        "p99_score": float(np.quantile(scores, 0.99)),
        "gone": gone,
        "new": new,
    }


def main() -> int:
    """Compare, print and write."""
    folder, target = map(Path, sys.argv[1:3])
    found = compare(folder)
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
