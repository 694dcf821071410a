"""The evaluator at full scale: synthetic poses of known quality on a large annotation file.

    python studies/evaluator_scale.py person_keypoints_val2017.json -o studies/results/F.json

Each case has an answer that follows from how it was made. Wall time and peak memory are recorded;
the machine is named. Exit code 1 when a case misses its answer by more than 1e-9.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_bench.accuracy.coco import evaluate
from cfpose_bench.data.annotations import is_counted, read_annotations
from cfpose_bench.measurement import environment
from cfpose_bench.peers.serve import memory_mb
from cfpose_sdk.files import write_file
from cfpose_sdk.skeleton import COCO_17

Record = dict[str, Any]
TOLERANCE = 1e-9
SHIFTED_OKS = 0.72  # between two thresholds: 5 of 10 are reached
FAR = 1e5  # pixels between people: nobody's pose can match somebody else


def apart(truth: Mapping[str, Any]) -> Record:
    """The annotations with the counted people of a photo moved far away from one another.

    What a pose scores then depends on its own person alone, and AP has a closed form.
    """
    seen: dict[int, int] = {}
    people = []
    for person in truth["annotations"]:
        if is_counted(person):
            rank = seen[person["image_id"]] = seen.get(person["image_id"], -1) + 1
            points = np.array(person["keypoints"], dtype=np.float64).reshape(-1, 3)
            points[:, 0] += np.where(points[:, 2] > 0, rank * FAR, 0)
            x, y, w, h = person["bbox"]
            people.append(
                {**person, "keypoints": points.ravel().tolist(), "bbox": [x + rank * FAR, y, w, h]}
            )
    return {**truth, "annotations": people}


def poses_of(truth: Mapping[str, Any], oks: float = 1.0) -> list[Record]:
    """One pose for each counted person, all joints moved right until its OKS is `oks`."""
    return [
        {
            "image_id": person["image_id"],
            "keypoints": _moved(person, oks),
            "score": 1.0 - n / len(truth["annotations"]),
        }
        for n, person in enumerate(truth["annotations"])
    ]


def _moved(person: Mapping[str, Any], oks: float) -> list[float]:
    points = np.array(person["keypoints"], dtype=np.float64).reshape(-1, 3)
    labelled = points[:, 2] > 0
    if oks < 1:
        spread = 2 * (2 * np.array(COCO_17.oks_sigmas)[labelled]) ** 2 * person["area"]
        low, high = 0.0, 1e4
        for _ in range(100):  # OKS falls with the distance
            middle = (low + high) / 2
            reached = np.exp(-(middle**2) / spread).mean()
            low, high = (middle, high) if reached > oks else (low, middle)
        points[:, 0] += low
    return [float(value) for value in points.ravel()]


def cases(path: Path) -> dict[str, tuple[Record, list[Record], float]]:
    """name -> annotations, poses, the AP that they must have."""
    truth = apart(read_annotations(path))
    exact = poses_of(truth)
    kept = exact[::2]
    recalled = np.floor(len(kept) / len(exact) * 100 + 1e-9) + 1  # recall points 0.00 … reached
    return {
        "exact": (truth, exact, 1.0),
        "shifted": (truth, poses_of(truth, SHIFTED_OKS), 0.5),
        "half dropped": (truth, kept, float(recalled / 101)),
    }


def run(path: Path, clock: Callable[[], float] = time.perf_counter) -> Record:
    """Every case evaluated once."""
    record: Record = {"schema": 1, "environment": environment(), "annotations": path.name}
    record["cases"] = {}
    for name, (truth, poses, expected) in cases(path).items():
        start = clock()
        found = evaluate(truth, poses)
        record["cases"][name] = {
            "images": found.images,
            "instances": found.instances,
            "poses": len(poses),
            "AP": found.AP,
            "expected_AP": expected,
            "wall_s": clock() - start,
        }
    record["peak_rss_mb"] = memory_mb()["peak_rss"]
    return record


def main() -> int:
    """Run, print, write; 1 when a case misses its answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    record = run(options.annotations)
    text = json.dumps(record, indent=1) + "\n"
    print(text, end="")
    if options.output is not None:
        write_file(options.output, text)
    misses = [abs(c["AP"] - c["expected_AP"]) for c in record["cases"].values()]
    return int(max(misses) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
