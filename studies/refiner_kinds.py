"""What does a trained refiner change, and for which joints?

    python studies/refiner_kinds.py refined.safetensors --data-root DATA --json OUT.json

A minute on two cores. Annotated boxes; development photos (COCO train photos with id % 10 == 0), or
with --coco-val the 340 photos that are read once a finished model. Coarse and refined poses are of
one checkpoint, decoded as it ships. A joint is hidden when annotated so (v = 1), crowded when
another annotated person's box holds it, weak when the coarse pose has it at an OKS of 0.1 to 0.5.
Standard errors of the mean change of OKS are over photos, whose joints are not independent; the
interval of AP is a paired bootstrap over photos.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_bench.accuracy.coco import bootstrap_difference, evaluate
from cfpose_bench.measurement import environment
from cfpose_sdk.arrays import Bools, Float64
from cfpose_sdk.files import write_file
from cfpose_sdk.oks import joint_oks
from cfpose_training.checkpoints.files import load_pose
from cfpose_training.config import Source
from cfpose_training.data.people import People
from cfpose_training.nets.pose_net import RefinedPoseNet
from cfpose_training.pose.evaluation import DevelopmentSet, Predictions

DEVELOPMENT = Source(
    "development", "coco/person_keypoints_train.json", "coco/images/train", holdout_every=10
)
COCO_VAL = Source("coco-val", "coco/person_keypoints_val.json", "coco/images/val", holdout_every=1)
WEAK = (0.1, 0.5)


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--coco-val", action="store_true")
    arguments = parser.parse_args()
    network, spec = load_pose(arguments.checkpoint)
    if not isinstance(network, RefinedPoseNet):
        parser.error(f"{arguments.checkpoint} has no refiner")
    source = COCO_VAL if arguments.coco_val else DEVELOPMENT
    photos = DevelopmentSet(source, arguments.data_root, spec, None)
    people = photos.people
    coarse, refined = photos.predict(network.pose), photos.predict(network)
    truth, sigmas = people.joints[..., :2], spec.skeleton.oks_sigmas
    before = joint_oks(coarse.xy, truth, people.areas, sigmas)
    after = joint_oks(refined.xy, truth, people.areas, sigmas)
    root_area = np.sqrt(people.areas)[:, None]
    labelled = people.joints[..., 2] > 0
    moved = np.linalg.norm(refined.xy - coarse.xy, axis=-1) / root_area
    report = {
        "environment": environment(),
        "photos": source.name,
        "people": len(people),
        "median_move_of_sqrt_area": round(float(np.median(moved[labelled])), 4),
        "AP": _ap(photos, coarse, refined),
        "OKS": {
            name: _change(people, before, after, chosen) for name, chosen in _kinds(photos, before)
        },
    }
    write_file(arguments.json, (json.dumps(report, indent=2) + "\n").encode())
    print(json.dumps(report, indent=2))


def _ap(photos: DevelopmentSet, coarse: Predictions, refined: Predictions) -> dict[str, Any]:
    """Both APs, ranked by the same scores so that only the joints differ, and the difference."""
    people, scores = photos.people, coarse.score
    results = [
        [
            {
                "image_id": people.image_ids[people.photo[person]],
                "category_id": 1,
                "keypoints": np.column_stack([xy[person], scores[person]]).ravel().tolist(),
                "score": float(scores[person].mean()),
            }
            for person in range(len(people))
        ]
        for xy in (coarse.xy, refined.xy)
    ]
    ids, skeleton, truth = people.image_ids, photos.spec.skeleton, photos.annotations
    coarse_ap = evaluate(truth, results[0], skeleton=skeleton, image_ids=ids).AP
    change, low, high = bootstrap_difference(truth, *results, skeleton=skeleton, image_ids=ids)
    return {
        "coarse": round(coarse_ap, 4),
        "refined": round(coarse_ap + change, 4),
        "change_ci95": [round(low, 4), round(high, 4)],
    }


def _kinds(photos: DevelopmentSet, before: Float64) -> Iterator[tuple[str, Bools]]:
    """(N, K) masks of labelled joints, by kind."""
    people = photos.people
    labelled = people.joints[..., 2] > 0
    low, high = WEAK
    yield "all", labelled
    yield "hidden", people.joints[..., 2] == 1
    yield "crowded", labelled & _crowded(photos)
    yield "weak", labelled & (before >= low) & (before < high)
    yield "others", labelled & (people.joints[..., 2] == 2) & ~_crowded(photos) & (before >= high)


def _crowded(photos: DevelopmentSet) -> Bools:
    """(N, K): whether the box of another person of the photo, labelled or not, holds the joint."""
    people = photos.people
    boxes: dict[int, list[list[float]]] = {}
    for person in photos.annotations["annotations"]:
        if not person.get("iscrowd"):
            x, y, width, height = person["bbox"]
            boxes.setdefault(person["image_id"], []).append([x, y, x + width, y + height])
    inside = np.zeros(people.joints.shape[:2], dtype=np.bool_)
    for n, own in enumerate(people.boxes):
        others = np.array(boxes[people.image_ids[people.photo[n]]])
        apart = np.abs(others - own).max(axis=1)
        others = np.delete(others, apart.argmin(), axis=0)  # its own box, as annotated
        xy = people.joints[n, :, None, :2]
        inside[n] = ((xy >= others[:, :2]) & (xy <= others[:, 2:])).all(axis=-1).any(axis=-1)
    return inside


def _change(people: People, before: Float64, after: Float64, chosen: Bools) -> dict[str, Any]:
    """Mean OKS before and after, and the change with its standard error, clustered by photo."""
    change = after - before
    count = int(chosen.sum())
    mean = float(change[chosen].mean())
    excess = np.where(chosen, change - mean, 0.0).sum(axis=1)
    by_photo = np.bincount(people.photo, excess)
    return {
        "joints": count,
        "coarse": round(float(before[chosen].mean()), 4),
        "refined": round(float(after[chosen].mean()), 4),
        "change": round(mean, 4),
        "standard_error": round(float(np.sqrt((by_photo**2).sum())) / count, 4),
    }


if __name__ == "__main__":
    main()
