"""What fine-tuning on few photos does to the bundled model, on people that it did not learn from.

    python studies/few_photos.py --data-root DATA --photos 25 --seeds 1,2,3 --out runs/few \
        --json studies/results/few-photos-coco-25.json

`--source coco`: COCO train's photos whose id 10 divides; the bundled models were measured on them
and not trained. `lspet`: LSP-Extended, of which they learned nothing, for more photos. (MoveNet,
from which they began, and PP-TinyPose, which taught them, have learned from COCO train.) In the
order of the SHA-256 of their ids the last `--measured` photos are measured on, and the first ones
train. `init` writes the recipe and `fit` runs it, as anybody would; the difference of AP is paired
by photo. With `lspet` the people of COCO's photos are measured too: what is learned for one kind
of photos may be lost for another. A fit that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_bench.accuracy.coco import bootstrap_difference, evaluate
from cfpose_bench.data.annotations import is_counted, read_annotations
from cfpose_bench.measurement import environment
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import digest, write_file
from cfpose_sdk.skeleton import COCO_17

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


def compared(
    record: Record, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """AP after, its change and the 95 % interval of that."""
    change, low, high = bootstrap_difference(record, before, after, skeleton=COCO_17)
    ap = evaluate(record, after, skeleton=COCO_17).AP
    found = {"AP": ap, "change_AP": change, "low": low, "high": high}
    return {name: round(value, 4) for name, value in found.items()}


def fit(folder: Path, own: Path, images: Path, seed: int, start: str, minutes: str) -> Path:
    """The folder of a fit by the recipe that `init` proposes, its seed apart."""
    recipe, out = folder / f"few{seed}.toml", folder / f"seed{seed}"
    if not recipe.is_file():
        place = ["--annotations", str(own), "--images", str(images), "-o", str(recipe)]
        _run(["init", *place, "--from", start, "--no-estimate"])
        write_file(recipe, recipe.read_text().replace("seed = 2026", f"seed = {seed}"))
    limit = ["--max-minutes", minutes]
    _run(["fit", "--recipe", str(recipe), "--out", str(out), "--threads", "1", *limit])
    return out


def curve(out: Path) -> list[float]:
    """AP on the fit's own development photos after each epoch."""
    with (out / "stage1" / "log.csv").open(newline="") as file:
        return [round(float(row["dev_AP"]), 4) for row in csv.DictReader(file) if row["dev_AP"]]


def options() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--source", choices=tuple(SOURCES), default="coco")
    parser.add_argument("--photos", type=int, required=True, help="that train or hold out")
    parser.add_argument("--measured", type=int, default=60, help="photos that are measured on")
    parser.add_argument("--seeds", default="1", help="with commas between them")
    parser.add_argument("--start", default="default", help="of init --from")
    parser.add_argument("--max-minutes", default="inf", help="of each fit")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Fit a model a seed, measure, and write the JSON after each."""
    given = options()
    sets = {}
    for source, (file, folder) in SOURCES.items():
        record = read_annotations(given.data_root / file)
        sets[source] = record, photos_of(record, source), given.data_root / folder
    record, ids, images = sets[given.source]
    if len(ids) < given.photos + given.measured:
        raise SystemExit(f"{len(ids)} photos are free; {given.measured} of them are measured on")
    own = write_file(given.out / "own.json", json.dumps(part(record, ids[: given.photos])))
    judged = {given.source: (part(record, ids[-given.measured :]), images)}
    if given.source != "coco":
        others, free, place = sets["coco"]
        judged["coco"] = part(others, free), place
    model = _file(given.start)
    before = {name: results(model, *where) for name, where in judged.items()}
    asked = {name: getattr(given, name) for name in ("source", "photos", "measured", "seeds")}
    words = " ".join(f"--{name} {value}" for name, value in asked.items())
    content = {
        "command": f"python studies/few_photos.py --data-root DATA {words}",
        "source": given.source, "photos": given.photos, "start": given.start,
        "start_sha256": digest(model), "measured": {
            name: {
                "photos": len(here["images"]), "people": sum(map(is_counted, here["annotations"])),
                "AP_before": round(evaluate(here, before[name], skeleton=COCO_17).AP, 4),
            } for name, (here, _) in judged.items()
        }, "runs": [], "environment": environment(),
    }  # fmt: skip
    for seed in map(int, given.seeds.split(",")):
        out = fit(given.out, own, images, seed, given.start, given.max_minutes)
        artifact = str(out / f"few{seed}.onnx")
        row = {"seed": seed, "own_dev_AP_by_epoch": curve(out)}
        for name, where in judged.items():
            row[name] = compared(where[0], before[name], results(artifact, *where))
        content["runs"].append(row)
        print(json.dumps(row))
        write_file(given.json, json.dumps(content, indent=1))


def _file(start: str) -> str:
    from cfpose_sdk.backends.bundled import model_file

    return str(model_file(start))


def _run(command: Sequence[str]) -> None:
    subprocess.run([sys.executable, "-c", COMMAND, *command], check=True)


if __name__ == "__main__":
    main()
