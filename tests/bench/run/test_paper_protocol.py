"""The preset `paper`: flips inside the graph, raw scores, and boxes whose AP is known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfpose_bench.accuracy.boxes import note_on_boxes
from cfpose_bench.cli import main
from cfpose_bench.data.dataset import open_dataset
from cfpose_bench.models.open import open_model, parse_name
from cfpose_bench.models.wrappers import FlipTested
from cfpose_bench.run.predictions import join_photos
from cfpose_sdk.errors import InputError
from cfpose_sdk.keypoints import calibrate
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17
from tests.bench.known_answer import run

PAPER = ("--preset", "paper", "--boxes", "gt")


def test_a_graph_that_flips_inside_is_not_flipped_again(stand_in: Any) -> None:
    name = parse_name("default")
    assert isinstance(open_model(name, flip_test=True).model, FlipTested)
    stand_in.flips_inside = True
    opened = open_model(name, flip_test=True)
    assert not isinstance(opened.model, FlipTested)
    assert opened.facts.flips_inside


@pytest.mark.parametrize("asked", [True, False])
def test_it_is_said_of_a_graph_that_flips_inside(
    dataset_folder: Path, stand_in: Any, asked: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.flips_inside = True
    _, found = run(dataset_folder, *(["--flip-test"] if asked else []))
    assert found["protocol"]["flip_test"] is asked
    assert found["protocol"]["flip_test_inside"] == ["default"]
    told = capsys.readouterr()
    assert ("not flipped again" if asked else "though nobody asked") in told.err
    assert "inside the graph of default" in told.out


def test_the_preset_takes_graphs_that_flip_inside_alone(
    dataset_folder: Path, stand_in: Any
) -> None:
    with pytest.raises(InputError, match=r"default does not: write it with cfpose-export onnx --f"):
        run(dataset_folder, *PAPER)
    stand_in.flips_inside, stand_in.calibration = True, (0.0, 1.0)
    with pytest.raises(InputError, match=r"raw scores.*\(0\.0, 1\.0\)"):
        run(dataset_folder, *PAPER)
    stand_in.calibration = (2.0, 1.0)
    _, found = run(dataset_folder, *PAPER)
    protocol = found["protocol"]
    assert protocol["flip_test_method"] == "in the graph"
    assert "raw score" in protocol["score"]
    assert protocol["oks_nms"] == {"gt": 0.9}


def poses_with(confidence: np.ndarray) -> Poses:
    people = len(confidence)
    return Poses(
        xy=np.zeros((people, 17, 2), np.float32),
        confidence=confidence.astype(np.float32),
        boxes=np.array([[0, 0, 10 + 50 * n, 20] for n in range(people)], np.float32),
        box_scores=np.full(people, 0.5, np.float32),
        skeleton=COCO_17,
        image_size_wh=(320, 240),
    )


@pytest.mark.parametrize("calibration", [(1.0, 0.0), (2.5, 1.5), (0.4, -3.0)])
def test_the_001_rule_counts_raw_scores(
    dataset_folder: Path, calibration: tuple[float, float]
) -> None:
    """Whatever was fitted on the photos, the joints above 0.01 are those of the raw scores."""
    raw = np.random.default_rng(3).uniform(0.0, 0.6, (4, 17))
    raw[:, ::3] = 0.009
    photos = {1: poses_with(calibrate(raw, calibration))}
    dataset = open_dataset(dataset_folder)
    shared: dict[str, Any] = {"joint_threshold": 0.01, "oks_threshold": None}
    done = join_photos(photos, dataset, COCO_17, calibration=calibration, **shared)
    counted = raw > 0.01
    expected = 0.5 * (raw * counted).sum(axis=1) / counted.sum(axis=1)
    np.testing.assert_allclose([r["score"] for r in done.results], expected, rtol=2e-5)
    plain = [r["score"] for r in join_photos(photos, dataset, COCO_17, **shared).results]
    assert (calibration == (1.0, 0.0)) == np.allclose(plain, expected, rtol=2e-5)


@pytest.mark.parametrize(
    ("name", "photos", "crowdpose", "ap", "said"),
    [
        ("coco-val", 5000, False, 0.5642, ""),
        ("person_keypoints_val2017", 5000, False, 0.532, r"AP 0.532.*AP_H_56.*0.564"),
        ("coco-val", 5000, False, None, "AP 0.000"),
        ("coco-val", 340, False, 0.564, "5000 photos, and 340 are measured"),
        ("crowdpose", 8000, True, 0.564, "no AP is published of CrowdPose's"),
        ("mine", 5000, False, 0.564, "not for mine"),
    ],
)
def test_boxes_beside_their_published_ap(
    name: str, photos: int, crowdpose: bool, ap: float | None, said: str
) -> None:
    note = note_on_boxes(name, photos, crowdpose, ap)
    assert bool(note) == bool(said)
    assert re.search(said, note)


def test_the_report_has_the_boxes_ap_and_what_is_known_of_it(
    dataset_folder: Path, stand_in: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.flips_inside = True
    truth = json.loads((dataset_folder / "annotations.json").read_text())
    rows = [
        {"image_id": p["image_id"], "bbox": p["bbox"], "score": 1.0, "category_id": 1}
        for p in truth["annotations"]
        if p["num_keypoints"]
    ]
    boxes = dataset_folder.parent / "boxes.json"
    boxes.write_text(json.dumps(rows))
    _, found = run(dataset_folder, "--preset", "paper", "--boxes", str(boxes))
    facts = found["protocol"]["box_accuracy"]["boxes.json"]
    assert facts["AP"] == pytest.approx(1.0)
    assert facts["note"] in capsys.readouterr().err
    _, plain = run(dataset_folder, "--boxes", str(boxes))
    assert "note" not in plain["protocol"]["box_accuracy"]["boxes.json"]


def test_opecs_evaluator_is_for_crowdpose(dataset_folder: Path, stand_in: Any) -> None:
    with pytest.raises(InputError, match="annotations is not: its photos have no crowdIndex"):
        main(["--dataset", str(dataset_folder), "--protocol", "opec-12"])
