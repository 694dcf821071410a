"""The page docs/train.md as a user follows it: 60 photos, five joints, to an artifact that runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cfpose_sdk import PoseEstimator

FIVE = ("nose", "left_wrist", "right_wrist", "left_ankle", "right_ankle")
PHOTOS = 60


def run(command: str, *arguments: str, folder: Path) -> str:
    code = f"import sys; from cfpose_sdk.commands import {command}; sys.exit({command}())"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def mine(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mine.json` and `photos`: COCO train photos with five joints of each person."""
    folder = tmp_path_factory.mktemp("mine")
    source = shared_dir / "data" / "coco"
    record = json.loads((source / "person_keypoints_train.json").read_text())
    names = record["categories"][0]["keypoints"]
    places = [names.index(name) for name in FIVE]
    people = []
    for person in record["annotations"]:
        joints = [v for i in places for v in person["keypoints"][3 * i : 3 * i + 3]]
        if not person["iscrowd"] and sum(v > 0 for v in joints[2::3]) >= 3:
            people.append(
                {"id": person["id"], "image_id": person["image_id"], "category_id": 1,
                 "bbox": person["bbox"], "keypoints": joints}
            )  # fmt: skip
    chosen = sorted({person["image_id"] for person in people})[:PHOTOS]
    images = [image for image in record["images"] if image["id"] in chosen]
    (folder / "photos").mkdir()
    for image in images:
        shutil.copy(source / "images" / "train" / image["file_name"], folder / "photos")
    own = {
        "images": images, "annotations": [p for p in people if p["image_id"] in chosen],
        "categories": [{"id": 1, "name": "person", "keypoints": list(FIVE)}],
    }  # fmt: skip
    (folder / "mine.json").write_text(json.dumps(own))
    return folder


def test_the_page_leads_to_an_artifact(mine: Path) -> None:
    data = ["--annotations", "mine.json", "--images", "photos"]
    said = run("train", "init", *data, "-o", "mine.toml", "--no-estimate", folder=mine)
    assert "knows 5 of the 5 joints by name" in said
    run("train", "data", "show", *data, "-o", "show.jpg", folder=mine)
    recipe = mine / "mine.toml"
    text = recipe.read_text()
    epochs = next(line for line in text.splitlines() if line.startswith("epochs"))
    recipe.write_text(text.replace(epochs, "epochs = 2", 1))
    fit = ["fit", "--recipe", "mine.toml", "--accelerator", "cpu", "--threads", "1"]
    said = run("train", *fit, "--out", "a", folder=mine)
    table = [line.split() for line in said.splitlines()]
    assert ["joints", "AP", "AP50"] in table
    assert [row[0] for row in table[-5:]] == ["before", "after", "changed", "on", "wrote"]
    photo = sorted((mine / "photos").iterdir())[0]
    poses = PoseEstimator(mine / "a" / "mine.onnx").predict(photo)
    assert poses.skeleton.keypoints == FIVE
    assert poses.calibrated
    run("cfpose", "predict", str(photo), "--model", "a/mine.onnx", "--save", "out", folder=mine)
    bench = ["--model", "a/mine.onnx", "--dataset", "mine.json", "--images", "photos"]
    assert "mine.onnx" in run("bench", *bench, "--limit", "3", folder=mine)
    # the same seed again: the same weights, and figures that are no worse than chance
    run("train", *fit, "--out", "b", folder=mine)
    # (the library writes the metadata in any order, so bytes of the file may differ)
    one, two = (load_file(mine / run_ / "stage1" / "student.safetensors") for run_ in "ab")
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[key], two[key]) for key in one)
    report = json.loads((mine / "a" / "report.json").read_text())
    assert report["whole"]["AP"] > report["before"]["AP"] - 0.1
    assert np.isfinite(report["whole"]["AP50"])
