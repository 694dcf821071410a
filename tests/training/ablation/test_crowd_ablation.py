"""An ablation whose development photos are CrowdPose's: easy, medium and hard are measured too."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfpose_bench.accuracy.crowdpose import evaluate_crowdpose
from cfpose_bench.data.annotations import CROWDPOSE_NAMES
from cfpose_training.ablation.run import RESULT_FILE, run_ablation
from cfpose_training.config import Recipe, load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.pose.evaluation import DevelopmentSet, Predictions
from cfpose_training.pose.train import pose_spec
from cfpose_training.run.loop import RunOptions

JOINTS = len(CROWDPOSE_NAMES)


@pytest.fixture
def crowd_recipe(tiny_recipe: Path, tiny_root: Path) -> Recipe:
    """The tiny data as CrowdPose writes it: 14 joints of its names, crowd indices, no areas."""
    path = tiny_root / "people.json"
    record: dict[str, Any] = json.loads(path.read_text())
    record["categories"][0]["keypoints"] = list(CROWDPOSE_NAMES)
    for image in record["images"]:  # the held-out photos are 5 (easy) and 10 (hard)
        image["crowdIndex"] = {5: 0.1, 10: 0.9}.get(image["id"], 0.5)
    for person in record["annotations"]:
        person["keypoints"] = person["keypoints"][: 3 * JOINTS]
        person["num_keypoints"] = JOINTS
        del person["area"]
    path.write_text(json.dumps(record))
    text = tiny_recipe.read_text().replace('"coco-17"', '"crowdpose"', 1)
    text = text.replace("epochs = 2", "epochs = 1")
    tiny_recipe.write_text(text)
    return load_recipe(tiny_recipe)


def development(recipe: Recipe, root: Path, cache: Path) -> DevelopmentSet:
    return DevelopmentSet(recipe.sources[0], root, pose_spec(recipe), cache)


def test_the_development_set_is_measured_as_crowdpose_is(
    crowd_recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    dev = development(crowd_recipe, tiny_root, tmp_path / "cache")
    truth = dev.people.joints[..., :2]
    wrong = truth.copy()
    hard = [dev.people.image_ids[photo] == 10 for photo in dev.people.photo]
    wrong[hard] += 500
    found = dev.accuracy(Predictions(wrong, np.full((len(truth), JOINTS), 0.5)))
    assert (found.AP_easy, found.AP_hard) == (pytest.approx(1.0), 0.0)
    assert np.isnan(found.AP_medium or 0.0)
    # the area is 0.53 of the box: a shift that is fair for this area and not for the whole box
    results = [
        {
            "image_id": dev.people.image_ids[photo], "category_id": 1, "score": 0.5,
            "keypoints": np.column_stack([xy + 3, np.full(JOINTS, 0.5)]).ravel().tolist(),
        }
        for photo, xy in zip(dev.people.photo, truth, strict=True)
    ]  # fmt: skip
    expected = evaluate_crowdpose(tiny_root / "people.json", results, image_ids=[5, 10])
    shifted = dev.accuracy(Predictions(truth + 3, np.full((len(truth), JOINTS), 0.5)))
    assert 0 < shifted.AP < 1
    assert shifted.AP == expected.AP


def test_the_table_has_its_levels(
    crowd_recipe: Recipe, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    data = DataOptions(tiny_root, tmp_path / "cache")
    rows = run_ablation(crowd_recipe, ["baseline", "1"], [1], data, RunOptions(out))
    assert rows is not None
    assert "run 2 of 2" in capsys.readouterr().out
    for row in rows:
        assert row.AP_easy is not None
        assert row.AP_hard is not None
        assert row.AP_medium is None  # no photo of that level is held out
    title = (out / "ablation.md").read_text().splitlines()[0]
    assert "| AP75 | AP easy | AP hard | AP of 12 joints | error % |" in title
    with open(out / "ablation.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [record["AP_medium"] for record in written] == ["", ""]
    assert [float(record["AP_easy"]) for record in written] == pytest.approx(
        [row.AP_easy for row in rows], abs=1e-5
    )
    stored = json.loads(next(out.rglob(RESULT_FILE)).read_text())
    assert {"AP_easy", "AP_medium", "AP_hard", "AP_opec"} <= stored.keys()
    assert all(row.AP_opec is not None for row in rows)
    resumed = RunOptions(out, resume=True)
    assert run_ablation(crowd_recipe, ["baseline", "1"], [1], data, resumed) == rows
