"""What a frame-in graph costs against OpenCV's crops: accuracy, anti-aliasing, memory.

    python studies/frame_input.py --data-root DATA --json studies/results/frame-input-dev.json

Two minutes on two cores. Photos: the development split (COCO train photos with id % 10 == 0) with
annotated boxes. `oks_shrunk` is the mean OKS of the people whose crop shrinks the photo by more
than √2, the only ones whom anti-aliasing touches. `area` is crops of a photo that OpenCV's
INTER_AREA has shrunk to the crop's scale first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cfpose_bench.accuracy.coco import evaluate
from cfpose_bench.data.annotations import read_annotations
from cfpose_export.graph.frame_input import frame_graph
from cfpose_export.graph.rules import load_model
from cfpose_sdk.estimator import BUNDLED_MODEL, PoseEstimator
from cfpose_sdk.files import write_file
from cfpose_sdk.media.image import read_image
from cfpose_sdk.oks import joint_oks
from cfpose_sdk.results import Poses

ANTIALIAS = (1, 2, 3)
SHRUNK = 2**0.5
MEMORY = """
import sys
import numpy as np
from cfpose_sdk.estimator import PoseEstimator
model, people = sys.argv[1], int(sys.argv[2])
frame = np.random.default_rng(0).integers(0, 256, (2160, 3840, 3), dtype=np.uint8)
x = np.linspace(0, 3400, people)
boxes = np.stack([x, x / 3, x + 400, x / 3 + 900], axis=1)
with PoseEstimator(model, device="cpu", threads=1) as pose:
    if people:
        pose.predict(frame, boxes=boxes)
# not ru_maxrss: a process starts with that of the one that started it
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) // 1024)
"""


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    folder = arguments.data_root / "coco"
    truth = read_annotations(folder / "person_keypoints_train.json")
    photos = {i["id"]: folder / "images" / "train" / i["file_name"] for i in truth["images"]}
    photos = {i: p for i, p in photos.items() if i % 10 == 0 and p.is_file()}
    people = [p for p in truth["annotations"] if p["image_id"] in photos and p.get("num_keypoints")]
    with tempfile.TemporaryDirectory() as temporary:
        models = {"cv2": BUNDLED_MODEL}
        for taps in ANTIALIAS:
            models[f"frame, antialias {taps}"] = Path(temporary) / f"frame{taps}.onnx"
            graph = frame_graph(load_model(BUNDLED_MODEL), taps)
            write_file(models[f"frame, antialias {taps}"], graph.SerializeToString())
        rows = {}
        for name, path in models.items():
            with PoseEstimator(path, device="cpu") as pose:
                rows[name] = measure(truth, photos, people, pose.predict, pose)
        with PoseEstimator(device="cpu") as pose:
            rows["area"] = measure(truth, photos, people, shrunk_first(pose), pose)
        memory = {
            f"{name}, {people_} people": _peak(path, people_)
            for name, path in models.items()
            for people_ in (0, 20)
            if people_ or name == "cv2"
        }
    report = {
        "photos": len(photos),
        "people": len(people),
        "people_shrunk": rows["cv2"].pop("shrunk"),
        "model": "cfpose-s",
        "accuracy": {n: {k: v for k, v in r.items() if k != "shrunk"} for n, r in rows.items()},
        "peak_rss_mib_3840x2160": memory,
        "opencv": cv2.__version__,
    }
    write_file(arguments.json, (json.dumps(report, indent=2) + "\n").encode())
    print(json.dumps(report, indent=2))


def measure(
    truth: Mapping[str, Any],
    photos: Mapping[int, Path],
    people: list[dict[str, Any]],
    predict: Callable[..., Poses],
    pose: PoseEstimator,
) -> dict[str, Any]:
    """AP over the photos, and the mean OKS of the people who are shrunk."""
    results, shrunk = [], []
    width, height = pose.spec.size_wh
    for image_id, path in photos.items():
        own = [p for p in people if p["image_id"] == image_id]
        xywh = np.array([p["bbox"] for p in own], dtype=np.float64).reshape(-1, 4)
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        poses = predict(read_image(path), boxes=boxes)
        results += poses.to_coco(image_id)
        step = np.maximum(xywh[:, 2] / width, xywh[:, 3] / height) * pose.spec.box_scale
        for person, xy, shrinking in zip(own, poses.xy, step, strict=True):
            if shrinking > SHRUNK:
                shrunk.append(_oks(person, xy, pose))
    found = evaluate(truth, results, image_ids=list(photos))
    return {
        "AP": round(found.AP, 4),
        "AP75": round(found.AP75, 4),
        "oks_shrunk": round(float(np.mean(shrunk)), 4),
        "shrunk": len(shrunk),
    }


def shrunk_first(pose: PoseEstimator) -> Callable[..., Poses]:
    """`predict`, one person at a time, on a photo that INTER_AREA has brought to crop scale."""
    width, height = pose.spec.size_wh

    def predict(image: np.ndarray, boxes: np.ndarray) -> Poses:
        poses = pose.predict(image, boxes=boxes)
        for n, box in enumerate(boxes):
            span = box[2:] - box[:2]
            step = max(span[0] / width, span[1] / height) * pose.spec.box_scale
            if step > SHRUNK:
                size = (round(image.shape[1] / step), round(image.shape[0] / step))
                small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
                ratio = np.array([size[0] / image.shape[1], size[1] / image.shape[0]])
                # a pixel's centre is at its middle: (x + ½) scales, not x
                moved = (box.reshape(2, 2) + 0.5) * ratio - 0.5
                one = pose.predict(small, boxes=moved.reshape(1, 4))
                poses.xy[n] = (one.xy[0] + 0.5) / ratio - 0.5
                poses.confidence[n] = one.confidence[0]
        return poses

    return predict


def _oks(person: Mapping[str, Any], xy: np.ndarray, pose: PoseEstimator) -> float:
    joints = np.array(person["keypoints"], dtype=np.float64).reshape(-1, 3)
    seen = joints[:, 2] > 0
    oks = joint_oks(xy, joints[:, :2], person["area"], pose.spec.skeleton.oks_sigmas)
    return float(oks[seen].mean())


def _peak(model: Path, people: int) -> int:
    """Peak resident MiB of a process that poses `people` people in one 4K frame; Linux alone."""
    command = [sys.executable, "-c", MEMORY, str(model), str(people)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
