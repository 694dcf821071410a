"""How well are poses of each kind found? Upright or tilted torsos, wrists below or above shoulders.

    python studies/pose_kinds.py --data-root DATA --json studies/results/pose-kinds.json

Two minutes on two cores. People with both shoulders, both hips and a wrist labelled, in annotated
boxes: the development photos (COCO train2017, id % 10 == 0), and every eighth person of
LSP-Extended, which no bundled model learned from. Mean OKS of each kind, of the bundled pose model
and of MoveNet Lightning, and how common the kind is there and in the photos that the model learned
from.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_bench.accuracy.oks import oks_matrix
from cfpose_bench.data.annotations import read_annotations
from cfpose_bench.measurement import environment
from cfpose_sdk.arrays import Float64
from cfpose_sdk.backends.foreign import adopted_file
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import write_file
from cfpose_sdk.media.image import read_image
from cfpose_sdk.skeleton import COCO_17

SHOULDERS, WRISTS, HIPS = (5, 6), (9, 10), (11, 12)
TILTS_DEG = (0, 20, 45, 90, 180)  # of the torso against the upright
DEV_EVERY = 10
LSPET_EVERY = 8


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    root = arguments.data_root
    coco = read_annotations(root / "coco" / "person_keypoints_train.json")
    lspet = read_annotations(root / "lspet" / "person_keypoints_train.json")
    held_out = [p for p in coco["annotations"] if p["image_id"] % DEV_EVERY == 0]
    learned = [p for p in coco["annotations"] if p["image_id"] % DEV_EVERY]
    sets = {
        "development": (coco, held_out, root / "coco" / "images" / "train"),
        "lsp_extended": (lspet, lspet["annotations"][::LSPET_EVERY], root / "lspet" / "images"),
    }
    lightning = adopted_file("movenet", root / "labellers" / "movenet_lightning.onnx")
    models = {
        "cfpose": PoseEstimator(device="cpu"),
        "lightning": PoseEstimator(lightning, device="cpu"),
    }
    report: dict[str, Any] = {
        "environment": environment(),
        "learned_from": _shares([kind for _, kind in _told(learned)]),
    }
    for name, (record, people, folder) in sets.items():
        told = list(_told(people))
        oks = {key: _oks(model, record, told, folder) for key, model in models.items()}
        report[name] = _table([kind for _, kind in told], oks)
        print(name, json.dumps(report[name], indent=1), flush=True)
    write_file(arguments.json, (json.dumps(report, indent=2) + "\n").encode())


def _told(people: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], tuple[int, bool]]]:
    """Each person whose kind can be told, and it: which tilt, and a wrist above its shoulder."""
    for person in people:
        joints = np.array(person["keypoints"], dtype=np.float64).reshape(-1, 3)
        labelled = joints[:, 2] > 0
        if not labelled[[*SHOULDERS, *HIPS]].all() or not labelled[list(WRISTS)].any():
            continue
        x, y = joints[list(SHOULDERS), :2].mean(axis=0) - joints[list(HIPS), :2].mean(axis=0)
        tilt = abs(float(np.degrees(np.arctan2(x, -y))))
        raised = any(
            labelled[wrist] and joints[wrist, 1] < joints[shoulder, 1]
            for wrist, shoulder in zip(WRISTS, SHOULDERS, strict=True)
        )
        yield person, (int(np.searchsorted(TILTS_DEG[1:-1], tilt, side="right")), raised)


def _oks(
    model: PoseEstimator,
    record: dict[str, Any],
    told: list[tuple[dict[str, Any], tuple[int, bool]]],
    folder: Path,
) -> Float64:
    """(N,) OKS of each person in its annotated box."""
    names = {image["id"]: image["file_name"] for image in record["images"]}
    scores = []
    for person, _ in told:
        x, y, width, height = person["bbox"]
        box = np.array([[x, y, x + width, y + height]])
        xy = model.predict(read_image(folder / names[person["image_id"]]), boxes=box).xy[0]
        truth = np.array(person["keypoints"], dtype=np.float64).reshape(-1, 3)
        labelled = truth[:, 2] > 0
        sigmas = np.array(COCO_17.oks_sigmas)[labelled]
        pair = np.stack([xy[labelled], truth[labelled, :2]])
        scores.append(oks_matrix(pair, np.full(2, person["area"]), sigmas)[0, 1])
    return np.array(scores)


def _shares(kinds: list[tuple[int, bool]]) -> dict[str, Any]:
    """How common each kind is."""
    tilts, raised = np.array([tilt for tilt, _ in kinds]), np.array([up for _, up in kinds])
    return {
        "people": len(kinds),
        **{key: round(float(chosen.mean()), 4) for key, chosen in _kinds(tilts, raised)},
    }


def _table(kinds: list[tuple[int, bool]], oks: dict[str, Float64]) -> dict[str, Any]:
    """Share of each kind, and each model's mean OKS over it."""
    tilts, raised = np.array([tilt for tilt, _ in kinds]), np.array([up for _, up in kinds])
    rows: dict[str, Any] = {"shares": _shares(kinds)}
    for model, scores in oks.items():
        rows[model] = {"everybody": round(float(scores.mean()), 4)} | {
            key: round(float(scores[chosen].mean()), 4)
            for key, chosen in _kinds(tilts, raised)
            if chosen.any()
        }
    return rows


def _kinds(
    tilts: NDArray[np.int_], raised: NDArray[np.bool_]
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    for index, (low, high) in enumerate(itertools.pairwise(TILTS_DEG)):
        yield f"tilt_{low}_to_{high}_deg", tilts == index
    yield "wrist_above_shoulder", raised


if __name__ == "__main__":
    main()
