"""What should a confidence be calibrated from: the mass of the bins' peak, or their spread?

    python studies/confidence_choice.py --data-root DATA \\
        --json studies/results/confidence-dev.json

Half a minute. The bundled model on the development split (COCO train photos with id % 10 == 0) with
annotated boxes. Each candidate is calibrated on all labelled joints of these photos, as training
does it, and then asked: how likely does it find the truth (negative log-likelihood of a joint being
OKS-good), how often does it rank a good joint before a bad one (AUC), how far off is it (ECE), and
what AP have the poses, ranked by their mean confidence? The network and the poses are the same.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_bench.accuracy.coco import evaluate
from cfpose_bench.data.annotations import read_annotations
from cfpose_export.graph.rules import LOGITS, load_model, read_spec
from cfpose_sdk.arrays import Float64
from cfpose_sdk.crops import invert_transforms, transform_points
from cfpose_sdk.estimator import BUNDLED_MODEL
from cfpose_sdk.files import write_file
from cfpose_sdk.keypoints import calibrate, covariance, decode_simcc, expected_oks
from cfpose_sdk.oks import good_distance
from cfpose_sdk.spec import ModelSpec
from cfpose_training.pose.calibration import calibration_error, fit_calibration
from covariance_choice import run


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    model = load_model(BUNDLED_MODEL)
    spec = read_spec(model)
    found = run(model, arguments.data_root / "coco")
    x, y, xy = (found[name] for name in (*LOGITS, "keypoints"))
    moments = covariance(
        x, y, xy, spec.split_ratio,
        temperature=spec.spread_temperature, isotropy=spec.spread_isotropy,
    )  # fmt: skip
    candidates = {
        "peak": decode_simcc(x, y, spec.split_ratio, spec.decode)[1],
        "spread": expected_oks(xy, moments, spec.skeleton.oks_sigmas),
    }
    annotations = read_annotations(arguments.data_root / "coco" / "person_keypoints_train.json")
    report = {
        "people": len(xy),
        "joints": int(found["labelled"].sum()),
        "model": "cfpose-s",
        "in_use": spec.evidence,
        "candidates": {
            name: _judged(score, found, spec, annotations) for name, score in candidates.items()
        },
    }
    write_file(arguments.json, (json.dumps(report, indent=2) + "\n").encode())
    print(json.dumps(report, indent=2))


def _judged(
    score: Float64, found: dict[str, NDArray[Any]], spec: ModelSpec, annotations: dict[str, Any]
) -> dict[str, float]:
    labelled = found["labelled"]
    distance = np.linalg.norm(found["keypoints"] - found["truth"], axis=-1)
    reach = good_distance(found["area"], spec.skeleton.oks_sigmas)
    good = (distance <= reach)[labelled]
    fitted = fit_calibration(score[labelled], good)
    confidence = calibrate(score, fitted)
    sure = confidence[labelled]
    ranks = np.argsort(np.argsort(sure, kind="stable"), kind="stable") + 1
    hits = int(good.sum())
    auc = (ranks[good].sum() - hits * (hits + 1) / 2) / (hits * (len(good) - hits))
    figures = {
        "negative_log_likelihood": -np.log(np.where(good, sure, 1 - sure)).mean(),
        "AUC": auc,
        "ECE": calibration_error(score[labelled], good, fitted),
        "AP": _accuracy(confidence, found, spec, annotations),
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def _accuracy(
    confidence: Float64,
    found: dict[str, NDArray[Any]],
    spec: ModelSpec,
    annotations: dict[str, Any],
) -> float:
    xy = transform_points(invert_transforms(found["map"]), found["keypoints"])
    results = [
        {
            "image_id": int(photo),
            "category_id": 1,
            "keypoints": np.concatenate([points, sure[:, None]], axis=1).ravel().tolist(),
            "score": float(sure.mean()),
        }
        for photo, points, sure in zip(found["photo"], xy, confidence, strict=True)
    ]
    photos = [image["id"] for image in annotations["images"] if image["id"] % 10 == 0]
    return evaluate(annotations, results, skeleton=spec.skeleton, image_ids=photos).AP


if __name__ == "__main__":
    main()
