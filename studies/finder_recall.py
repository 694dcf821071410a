"""How many people with annotated joints the bundled finder finds, at its threshold.

    python studies/finder_recall.py --data-root DATA --json studies/results/finder-recall.json

Half a minute on two cores. Photos: those of `coco-val`. A person is found when a box overlaps the
annotated one at IoU 0.5; boxes may serve two people. `cfpose-bench` counts everybody who is
annotated, people without joints too, and one box a person.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from cfpose_bench.data.annotations import read_annotations
from cfpose_bench.measurement import environment
from cfpose_sdk.boxes import iou_matrix
from cfpose_sdk.detectors.base import PersonFinder
from cfpose_sdk.files import write_file
from cfpose_sdk.media.image import read_image

MATCH_IOU = 0.5


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    folder = arguments.data_root / "coco"
    truth = read_annotations(folder / "person_keypoints_val.json")
    found = people = 0
    with PersonFinder(device="cpu") as finder:
        for image in truth["images"]:
            xywh = [
                p["bbox"]
                for p in truth["annotations"]
                if p["image_id"] == image["id"] and p["num_keypoints"] and not p["iscrowd"]
            ]
            if not xywh:
                continue
            boxes = np.array(xywh, dtype=np.float64)
            boxes[:, 2:] += boxes[:, :2]
            people += len(boxes)
            candidates = finder(read_image(folder / "images" / "val" / image["file_name"])).boxes
            if len(candidates):
                best = iou_matrix(boxes, candidates.astype(np.float64)).max(axis=1)
                found += int((best >= MATCH_IOU).sum())
        record = {
            "environment": environment(),
            "finder": finder.spec.name,
            "threshold": finder.threshold,
            "people": people,
            "found": found,
            "recall": round(found / people, 4),
        }
    write_file(arguments.json, (json.dumps(record, indent=2) + "\n").encode())
    print(json.dumps(record))


if __name__ == "__main__":
    main()
