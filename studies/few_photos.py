"""What fine-tuning on few photos does to the bundled model, on people that it did not learn from.

    python studies/few_photos.py --data-root DATA --photos 25 --seeds 1,2,3 --out runs/few \
        --json studies/results/few-photos.json

`--source coco`: COCO train's photos whose id 10 divides; the bundled models were measured on them
and not trained. `lspet`: LSP-Extended, of which they learned nothing, for more photos. In the order
of the SHA-256 of their ids the last 40 are measured on, and the first ones train. `init` writes the
recipe and `fit` runs it, as anybody would; the difference of AP is paired by photo.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_bench.accuracy.coco import bootstrap_difference
from cfpose_bench.data.annotations import is_counted, read_annotations
from cfpose_bench.measurement import environment
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import digest, write_file
from cfpose_sdk.skeleton import COCO_17

MEASURED = 40  # photos
COMMAND = "import sys; from cfpose_sdk.commands import train; sys.exit(train())"
SOURCES = {
    "coco": ("coco/person_keypoints_train.json", "coco/images/train"),
    "lspet": ("lspet/person_keypoints_train.json", "lspet/images"),
}
Record = dict[str, Any]


def photos_of(record: Record, source: str) -> list[int]:
    """Ids of the photos with labelled people that no bundled model learned from, shuffled."""
    ids = {person["image_id"] for person in record["annotations"] if is_counted(person)}
    free = [i for i in ids if source != "coco" or i % 10 == 0]
    return sorted(free, key=lambda i: hashlib.sha256(str(i).encode()).hexdigest())


def part(record: Record, ids: Sequence[int]) -> Record:
    """The photos with these ids and their people; the ids become 1, 2, 3, …"""
    number = {old: new for new, old in enumerate(ids, start=1)}
    images = [{**i, "id": number[i["id"]]} for i in record["images"] if i["id"] in number]
    people = [
        {**person, "image_id": number[person["image_id"]]}
        for person in record["annotations"]
        if person["image_id"] in number
    ]
    return {**record, "images": images, "annotations": people}


def results(model: str, record: Record, images: Path) -> list[Mapping[str, Any]]:
    """The model's poses in the annotated boxes."""
    found: list[Mapping[str, Any]] = []
    with PoseEstimator(model, device="cpu") as estimator:
        for image in record["images"]:
            here = [p for p in record["annotations"] if p["image_id"] == image["id"]]
            boxes = np.array([p["bbox"] for p in here if is_counted(p)], dtype=float).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            poses = estimator.predict(images / image["file_name"], boxes)
            for xy, sure in zip(poses.xy, poses.confidence, strict=True):
                flat = np.concatenate([xy, sure[:, None]], axis=1).ravel().tolist()
                score = float(sure.mean())
                found.append({"image_id": image["id"], "keypoints": flat, "score": score})
    return found


def main() -> None:
    """Fit a model a seed, measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--source", choices=tuple(SOURCES), default="coco")
    parser.add_argument("--photos", type=int, required=True, help="that train or hold out")
    parser.add_argument("--seeds", default="1", help="with commas between them")
    parser.add_argument("--start", default="default", help="of init --from")
    parser.add_argument("--max-minutes", default="inf", help="of each fit")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    annotations, images = (arguments.data_root / place for place in SOURCES[arguments.source])
    record = read_annotations(annotations)
    ids = photos_of(record, arguments.source)
    if len(ids) < arguments.photos + MEASURED:
        parser.error(f"{len(ids)} photos are free; {MEASURED} of them are measured on")
    folder = arguments.out
    own = write_file(folder / "own.json", json.dumps(part(record, ids[: arguments.photos])))
    measured = part(record, ids[-MEASURED:])
    rows = []
    before = results(_file(arguments.start), measured, images)
    for seed in map(int, arguments.seeds.split(",")):
        recipe, out = folder / f"few{seed}.toml", folder / f"seed{seed}"
        place = ["--annotations", str(own), "--images", str(images), "-o", str(recipe)]
        _run(["init", *place, "--from", arguments.start, "--no-estimate"])
        recipe.write_text(recipe.read_text().replace("seed = 2026", f"seed = {seed}"))
        limit = ["--max-minutes", arguments.max_minutes]
        _run(["fit", "--recipe", str(recipe), "--out", str(out), "--threads", "1", *limit])
        after = results(str(out / f"few{seed}.onnx"), measured, images)
        change, low, high = bootstrap_difference(measured, before, after, skeleton=COCO_17)
        rows.append({"seed": seed, "change_AP": change, "low": low, "high": high})
        print(json.dumps(rows[-1]))
    content = {
        "source": arguments.source, "photos": arguments.photos, "start": arguments.start,
        "start_sha256": digest(_file(arguments.start)),
        "measured_photos": MEASURED,
        "measured_people": sum(map(is_counted, measured["annotations"])), "runs": rows,
        "environment": environment(),
    }  # fmt: skip
    write_file(arguments.json, json.dumps(content, indent=1))


def _file(start: str) -> str:
    from cfpose_sdk.backends.bundled import model_file

    return str(model_file(start))


def _run(command: Sequence[str]) -> None:
    subprocess.run([sys.executable, "-c", COMMAND, *command], check=True)


if __name__ == "__main__":
    main()
