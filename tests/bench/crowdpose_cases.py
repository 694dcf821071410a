"""Random CrowdPose files and results, and what xtcocotools makes of them.

`python tests/bench/crowdpose_cases.py --seeds 8` writes golden/xtcocotools.json. It needs
xtcocotools 1.14.3 with numpy < 2: its wheel for Python 3.11 does not import under numpy 2, and for
later Pythons there is none. The cases need the standard library alone, and `random.random` gives
the same numbers everywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import random
import tempfile
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("golden") / "xtcocotools.json"
JOINTS = (
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "head", "neck",
)  # fmt: skip
SIGMAS = [0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89, 0.79, 0.79]
PHOTOS = 24


def case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A CrowdPose annotation object, without areas, and COCO results for it.

    It holds photos without people or without results, unlabelled joints, people to be ignored
    (no keypoints counted, or a crowd), near misses, repeats, false poses, more than twenty poses in
    a photo, equal scores, an annotation of id 0, and crowd indices on the levels' bounds.
    """
    draw = random.Random(seed)
    images: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number in range(1, PHOTOS + 1):
        index = draw.choice([0.0, 0.2, 0.8, 1.0, draw.random(), draw.random()])
        images.append(
            {"id": number, "file_name": f"{number}.jpg", "width": 640, "height": 480,
             "crowdIndex": index}
        )  # fmt: skip
        for _ in range(draw.choice([0, 1, 2, 3, 6])):
            people.append(_person(draw, number, len(people)))
            if draw.random() < 0.8:
                results += _found(draw, people[-1])
        for _ in range(25 if number == 5 else draw.choice([0, 0, 1, 3])):
            results.append(_result(draw, number, [640 * draw.random() for _ in range(28)]))
    draw.shuffle(results)
    category = {"id": 1, "name": "person", "keypoints": list(JOINTS)}
    return {"images": images, "annotations": people, "categories": [category]}, results


def _person(draw: random.Random, photo: int, identity: int) -> dict[str, Any]:
    x, y = 400 * draw.random(), 300 * draw.random()
    width, height = 30 + 200 * draw.random(), 40 + 150 * draw.random()
    keypoints: list[float] = []
    for _ in JOINTS:
        v = draw.choice([0, 1, 2, 2, 2])
        place = [x + width * draw.random(), y + height * draw.random()]
        keypoints += [*place, v] if v else [0, 0, 0]
    visible = sum(v == 2 for v in keypoints[2::3])  # what CrowdPose's files count
    return {
        "id": identity, "image_id": photo, "category_id": 1, "bbox": [x, y, width, height],
        "iscrowd": int(draw.random() < 0.05), "keypoints": keypoints,
        "num_keypoints": 0 if draw.random() < 0.1 else visible,
    }  # fmt: skip


def _found(draw: random.Random, person: dict[str, Any]) -> list[dict[str, Any]]:
    """One or two poses about the person's, off by a random part of the box."""
    spread = 0.4 * draw.random() ** 2 * (person["bbox"][2] * person["bbox"][3]) ** 0.5
    found = []
    for _ in range(draw.choice([1, 1, 1, 2])):
        points = [
            value + spread * (draw.random() + draw.random() - 1)
            for x, y, _ in zip(*[iter(person["keypoints"])] * 3, strict=True)
            for value in (x, y)
        ]
        found.append(_result(draw, person["image_id"], points))
    return found


def _result(draw: random.Random, photo: int, points: list[float]) -> dict[str, Any]:
    keypoints: list[float] = []
    for x, y in zip(points[::2], points[1::2], strict=True):
        keypoints += [x, y, 0.1 + 0.9 * draw.random()]
    score = round(draw.random(), 2)  # some scores are equal
    return {"image_id": photo, "category_id": 1, "keypoints": keypoints, "score": score}


def unscored_pose() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One person, found; and a better scored false pose whose joints all score 0."""
    truth, _ = case(0)
    (one,) = truth["annotations"][:1]
    one |= {"num_keypoints": 14, "iscrowd": 0, "keypoints": [50.0, 60.0, 2] * 14}
    photo = next(image for image in truth["images"] if image["id"] == one["image_id"])
    photo["crowdIndex"] = 0.5
    right = {"image_id": photo["id"], "category_id": 1, "keypoints": one["keypoints"], "score": 0.5}
    wrong = {**right, "keypoints": [400.0, 9.0, 0.0] * 14, "score": 0.9}
    return {**truth, "images": [photo], "annotations": [one]}, [right, wrong]


def digest(made: tuple[dict[str, Any], list[dict[str, Any]]]) -> str:
    """Changes when a case does: then its figures are another's."""
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def xtcocotools_figures(made: tuple[dict[str, Any], list[dict[str, Any]]]) -> dict[str, float]:
    """AP, AP50, AP75, AR and the levels' AP by xtcocotools, unrounded; −1 where undefined.

    Its own summary rounds the levels to four digits; those are here as `easy_rounded` and so on.
    """
    import numpy as np
    from xtcocotools.coco import COCO  # type: ignore[import-untyped]
    from xtcocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

    truth, results = made
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps(truth))
        ground_truth = COCO(str(path))
        poses = ground_truth.loadRes(json.loads(json.dumps(results)))
        sigmas = np.array(SIGMAS) / 10
        evaluation = COCOeval(ground_truth, poses, "keypoints_crowd", sigmas, use_area=False)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        ap, ap50, ap75, ar, *_, easy, medium, hard = map(float, evaluation.stats)
        figures = {"AP": ap, "AP50": ap50, "AP75": ap75, "AR": ar}
        levels = evaluation.split(str(path), 0.2, 0.8)
        for name, photos in zip(("AP_easy", "AP_medium", "AP_hard"), levels, strict=True):
            evaluation.params.imgIds = photos
            evaluation.evaluate()
            evaluation.accumulate()
            figures[name] = float(np.mean(evaluation.eval["precision"][:, :, :, 0]))
    rounded = {"easy_rounded": easy, "medium_rounded": medium, "hard_rounded": hard}
    return {**figures, **rounded}


def main() -> None:
    """Write the golden file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    seeds = parser.parse_args().seeds
    made = {str(seed): case(seed) for seed in range(seeds)} | {"unscored pose": unscored_pose()}
    record = {
        "made_by": f"python tests/bench/crowdpose_cases.py --seeds {seeds}",
        "xtcocotools": "1.14.3",
        "cases": {
            name: {"sha256": digest(one), "figures": xtcocotools_figures(one)}
            for name, one in made.items()
        },
    }
    GOLDEN.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
