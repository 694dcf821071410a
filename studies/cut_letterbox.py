"""What does a letterbox without most of its margin change: boxes, poses, time?

    python studies/cut_letterbox.py --data-root DATA --json studies/results/cut-letterbox-dev.json

Two minutes on two cores, which must have nothing else to do. Photos: the development split (COCO
train photos with id % 10 == 0). The bundled finder looks at whole letterboxes and at cut ones
(`cfpose_sdk.boxes.letterbox`), in turns; each box on whole letterboxes is paired with the nearest
on cut ones. AP of the bundled pose models with the boxes of each; the ratio of times is that of the
finder, photo by photo, its median over the photos of each shape.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cfpose_bench.accuracy.coco import evaluate
from cfpose_bench.data.annotations import read_annotations
from cfpose_bench.measurement import environment
from cfpose_export.graph.rules import load_model, whole_letterboxes
from cfpose_sdk.backends.bundled import BUNDLED_FINDER
from cfpose_sdk.boxes import fitting, letterbox
from cfpose_sdk.detectors.base import PersonFinder
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.media.image import Image, read_image

REPEATS = 5
THREADS = 2


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    folder = arguments.data_root / "coco"
    truth = read_annotations(folder / "person_keypoints_train.json")
    photos = {i["id"]: folder / "images" / "train" / i["file_name"] for i in truth["images"]}
    images = {i: read_image(p) for i, p in photos.items() if i % 10 == 0 and p.is_file()}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "whole.onnx"
        onnx.save_model(whole_letterboxes(load_model(BUNDLED_FINDER)), path)
        finders = {
            "whole": PersonFinder(path, device="cpu", threads=THREADS),
            "cut": PersonFinder(device="cpu", threads=THREADS),
        }
        report = {
            "environment": environment(),
            "photos": len(images),
            "boxes": boxes(finders, images),
            "finder_time_cut_over_whole": times(finders, images),
            "ap": {
                model: {
                    which: ap(model, finder, truth, images) for which, finder in finders.items()
                }
                for model in ("cfpose-s", "cfpose-m")
            },
        }
    arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def boxes(finders: dict[str, PersonFinder], images: dict[int, Image]) -> dict[str, Any]:
    """How many there are, and how far each on whole letterboxes is from the nearest on cut ones."""
    counts, far = dict.fromkeys(finders, 0), []
    for image in images.values():
        found = {which: finder(image) for which, finder in finders.items()}
        for which, people in found.items():
            counts[which] += len(people)
        if len(found["cut"]):
            scale = fitting(image.shape, finders["whole"].spec.size_wh)
            gaps = np.abs(found["whole"].boxes[:, None] - found["cut"].boxes[None]).max(axis=2)
            far += (gaps.min(axis=1) * scale).tolist()
    return counts | {
        "within_1_letterbox_px": round(float((np.array(far) <= 1).mean()), 3),
        "p95_px": round(float(np.percentile(far, 95)), 2),
    }


def times(finders: dict[str, PersonFinder], images: dict[int, Image]) -> dict[str, float]:
    """The median ratio over the photos of a shape of letterbox, width x height."""
    spec = finders["whole"].spec
    ratios = defaultdict(list)
    for image in images.values():
        taken: dict[str, list[float]] = {which: [] for which in finders}
        for _ in range(REPEATS):
            for which, finder in finders.items():
                begun = time.perf_counter()
                finder(image)
                taken[which].append(time.perf_counter() - begun)
        height, width = letterbox(image, spec.size_wh, spec.pad_value, cut=True)[0].shape[:2]
        ratio = float(np.median(taken["cut"]) / np.median(taken["whole"]))
        ratios[f"{width}x{height}"].append(ratio)
    return {
        f"{shape}, {len(values)} photos": round(float(np.median(values)), 3)
        for shape, values in sorted(ratios.items())
    }


def ap(model: str, finder: PersonFinder, truth: dict[str, Any], images: dict[int, Image]) -> float:
    """AP of a pose model in the finder's boxes."""
    results = []
    with PoseEstimator(model, device="cpu", detector=finder, threads=THREADS) as estimator:
        for image_id, image in images.items():
            poses = estimator.predict(image)
            results += [
                {
                    "image_id": image_id,
                    "category_id": 1,
                    "keypoints": np.column_stack([xy, confidence]).ravel().tolist(),
                    "score": float(score * confidence.mean()),
                }
                for xy, confidence, score in zip(
                    poses.xy, poses.confidence, poses.box_scores, strict=True
                )
            ]
    return round(evaluate(truth, results, image_ids=list(images)).AP, 4)


if __name__ == "__main__":
    main()
