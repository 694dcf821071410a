"""CrowdPose's protocol on cases whose answers are worked out by hand."""

# ruff: noqa: SIM300  (takes the field name AP for a constant)

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_bench.accuracy.coco import evaluate
from cfpose_bench.accuracy.crowdpose import evaluate_crowdpose, photos_by_level
from cfpose_bench.cli import main
from cfpose_bench.data.annotations import CROWDPOSE_NAMES, read_annotations
from cfpose_bench.data.dataset import open_dataset
from cfpose_bench.models import open
from cfpose_bench.run.predictions import predict_dataset
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14

Build = Callable[..., dict[str, Any]]
THRESHOLDS = np.linspace(0.5, 0.95, 10)


@pytest.fixture
def crowd(person: Build, annotate: Build) -> Build:
    """crowd(indices, **person options): a photo a crowd index, one person each, no areas."""

    def build(indices: list[float], **options: Any) -> dict[str, Any]:
        ids = range(1, len(indices) + 1)
        truth = annotate(
            [person(i, skeleton=CROWDPOSE_14, **options) for i in ids], skeleton=CROWDPOSE_14
        )
        for image, index in zip(truth["images"], indices, strict=True):
            image["crowdIndex"] = index
        for someone in truth["annotations"]:
            del someone["area"]
        return truth

    return build


def test_levels_split_at_their_bounds(crowd: Build) -> None:
    truth = crowd([0.0, 0.1999, 0.2, 0.5, 0.7999, 0.8, 1.0])
    assert photos_by_level(truth) == {"easy": {1, 2}, "medium": {3, 4, 5}, "hard": {6, 7}}


def test_each_level_has_its_own_ap(crowd: Build, pose: Build) -> None:
    """Easy: found. Medium: one of two found. Hard: missed. Overall: two of four."""
    truth = crowd([0.1, 0.3, 0.4, 0.9])
    people = truth["annotations"]
    found = evaluate_crowdpose(truth, [pose(people[0]), pose(people[1])])
    assert found.AP_easy == pytest.approx(1.0)
    assert found.AP_medium == pytest.approx(51 / 101)
    assert found.AP_hard == 0.0
    assert found.AP == pytest.approx(51 / 101)
    assert found.AR == pytest.approx(0.5)
    record = found.to_dict()
    assert {"AP", "AP50", "AP75", "AR", "AP_easy", "AP_medium", "AP_hard"} <= record.keys()
    assert not {"APM", "APL", "ARM", "ARL"} & record.keys()
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0, 9.3, 14.0])
@pytest.mark.parametrize("stated", [None, 123.0])
def test_the_area_is_053_of_the_box(
    crowd: Build, pose: Build, shift: float, stated: float | None
) -> None:
    """A joint shift has the closed form OKS of that area, whatever area the file states."""
    truth = crowd([0.5], size=110.0)
    (one,) = truth["annotations"]
    if stated is not None:
        one["area"] = stated
    variance = (2 * np.array(CROWDPOSE_14.oks_sigmas)) ** 2
    oks = np.exp(-(shift**2) / (2 * 0.53 * 110.0 * 110.0 * variance)).mean()
    assert np.abs(THRESHOLDS - oks).min() > 1e-3, "the case must not sit on a threshold"
    found = evaluate_crowdpose(truth, [pose(one, 1.0, shift)])
    assert found.AP == pytest.approx((oks > THRESHOLDS).mean(), abs=1e-12)
    assert found.AP_medium == found.AP
    assert math.isnan(found.AP_easy or 0.0)


def test_people_without_keypoints_are_ignored(crowd: Build, person: Build, pose: Build) -> None:
    truth = crowd([0.5])
    blank = person(1, x=200.0, skeleton=CROWDPOSE_14, labelled=0)
    truth["annotations"].append({**blank, "id": 77})
    on_blank = pose(person(1, x=200.0, skeleton=CROWDPOSE_14), 1.0)
    found = evaluate_crowdpose(truth, [pose(truth["annotations"][0], 0.5), on_blank])
    assert found.AP == pytest.approx(1.0)
    assert (found.instances, found.ignored) == (1, 1)


def test_only_the_twenty_best_poses_of_a_photo_count(crowd: Build, pose: Build) -> None:
    truth = crowd([0.5])
    (one,) = truth["annotations"]
    wrong = [pose(one, 0.9, 500.0 + 300 * i) for i in range(20)]
    assert evaluate_crowdpose(truth, [*wrong, pose(one, 0.5)]).AP == 0.0
    assert evaluate_crowdpose(truth, [*wrong[1:], pose(one, 0.5)]).AP == pytest.approx(1 / 20)


def test_opecs_evaluator_compares_twelve_joints(crowd: Build, pose: Build) -> None:
    """A head far away costs CrowdPose's own evaluator OKS, and OPEC-Net's nothing."""
    truth = crowd([0.1, 0.5])
    poses = [pose(person) for person in truth["annotations"]]
    poses[0]["keypoints"][36::3] = [900.0, 900.0]  # x of head and neck
    own = evaluate_crowdpose(truth, poses)
    opec = evaluate_crowdpose(truth, poses, evaluator="opec-12")
    assert own.AP_easy == pytest.approx((12 / 14 > THRESHOLDS).mean())
    assert (opec.AP, opec.AP_easy) == (pytest.approx(1.0), pytest.approx(1.0))
    assert opec.instances == own.instances == 2
    # the mean over joints is one of twelve: a wrist that is off costs more there
    wrist = [pose(person) for person in truth["annotations"]]
    for one in wrist:
        one["keypoints"][12] = one["keypoints"][15] = 900.0
    twelve = evaluate_crowdpose(truth, wrist, evaluator="opec-12")
    assert twelve.AP == pytest.approx((10 / 12 > THRESHOLDS).mean())
    with pytest.raises(DatasetError, match="36 numbers"):
        evaluate_crowdpose(truth, [{**poses[0], "keypoints": [0.0] * 51}], evaluator="opec-12")


def test_opecs_evaluator_counts_whoever_has_a_head(crowd: Build, pose: Build) -> None:
    """Who has a labelled head alone counts among fourteen joints, so also among twelve: a pose in
    twice the box is right, as OPEC-Net's copy has it for people without its joints.
    """
    truth = crowd([0.5])
    (one,) = truth["annotations"]
    near = pose(one)
    one["keypoints"][:36] = [0.0] * 36
    one["num_keypoints"] = 2
    far = {**near, "keypoints": [x + 5000 for x in near["keypoints"]]}
    assert evaluate_crowdpose(truth, [near], evaluator="opec-12").AP == pytest.approx(1.0)
    assert evaluate_crowdpose(truth, [far], evaluator="opec-12").AP == 0.0


def test_a_restriction_to_photos_holds_in_every_level(crowd: Build, pose: Build) -> None:
    truth = crowd([0.1, 0.1, 0.9])
    found = evaluate_crowdpose(truth, [pose(truth["annotations"][0])], image_ids=[1, 3])
    assert (found.AP_easy, found.AP_hard) == (pytest.approx(1.0), 0.0)
    assert math.isnan(found.AP_medium or 0.0)
    assert found.images == 2


def test_the_official_joint_names_are_understood(crowd: Build) -> None:
    truth = crowd([0.1])
    truth["categories"][0]["keypoints"] = list(CROWDPOSE_NAMES)
    read = read_annotations(truth)
    assert tuple(read["categories"][0]["keypoints"]) == CROWDPOSE_14.keypoints
    assert truth["categories"][0]["keypoints"][12] == "head"  # the caller's copy stays as it was
    assert "area" not in truth["annotations"][0]


def test_other_annotations_and_skeletons_are_refused(
    crowd: Build, person: Build, annotate: Build, pose: Build
) -> None:
    with pytest.raises(DatasetError, match=r"not CrowdPose's.*crowdIndex"):
        evaluate_crowdpose(annotate([person(1)]), [])
    coco = annotate([person(1)])
    coco["images"][0]["crowdIndex"] = 0.1
    with pytest.raises(DatasetError, match=r"17 keypoints nose.*14 keypoints left_shoulder"):
        evaluate_crowdpose(coco, [])
    truth = crowd([0.1])
    with pytest.raises(DatasetError, match="42 numbers"):
        evaluate_crowdpose(truth, [pose(person(1))])
    with pytest.raises(DatasetError, match=r"14 keypoints.*17 keypoints"):
        evaluate(truth, [], skeleton=COCO_17)
    truth["images"][0]["crowdIndex"] = "much"
    with pytest.raises(DatasetError, match="crowdIndex 'much'"):
        evaluate_crowdpose(truth, [])


@pytest.fixture
def crowdpose_root(tmp_path: Path, crowd: Build) -> Path:
    (tmp_path / "json").mkdir()
    (tmp_path / "images").mkdir()
    truth = crowd([0.1, 0.9])
    (tmp_path / "json/crowdpose_test.json").write_text(json.dumps(truth))
    for image in truth["images"]:
        assert cv2.imwrite(
            str(tmp_path / "images" / image["file_name"]), np.zeros((240, 320, 3), np.uint8)
        )
    return tmp_path


def test_the_data_set_is_found_below_the_root(
    crowdpose_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset("crowdpose", data_root=crowdpose_root)
    assert (dataset.name, dataset.image_ids, dataset.missing) == ("crowdpose", (1, 2), ())
    (crowdpose_root / "json").rename(crowdpose_root / "annotations")
    assert open_dataset("crowdpose", data_root=crowdpose_root).image_ids == (1, 2)
    monkeypatch.setenv("CFPOSE_DATA", str(crowdpose_root.parent))
    crowdpose_root.rename(crowdpose_root.parent / "crowdpose")
    assert open_dataset("crowdpose").image_ids == (1, 2)
    monkeypatch.delenv("CFPOSE_DATA")
    with pytest.raises(DatasetError, match="crowdpose needs the folder"):
        open_dataset("crowdpose")


class Diagonal:
    """Answers every box with the annotated diagonal; joints score 0.005 and 0.5 by turns."""

    def predict(self, image: Any, /, boxes: Any = None) -> Poses:
        given = np.asarray(boxes, dtype=np.float32)
        steps = np.linspace(0.1, 0.9, 14)[:, None] * (given[0, 2:4] - given[0, :2])
        return Poses(
            xy=(given[:1, :2] + steps)[None].astype(np.float32),
            confidence=np.tile(np.float32([0.005, 0.5]), 7)[None],
            boxes=given[:, :4],
            box_scores=np.float32([0.8]),
            skeleton=CROWDPOSE_14,
            image_size_wh=(320, 240),
            speed_ms={},
        )


@pytest.mark.parametrize(
    ("threshold", "score"), [(None, 0.8 * 0.2525), (0.01, 0.4), (0.2, 0.4), (0.5, 0.0)]
)
def test_predictions_are_rescored_and_evaluated(
    crowdpose_root: Path, threshold: float | None, score: float
) -> None:
    dataset = open_dataset("crowdpose", data_root=crowdpose_root)
    done = predict_dataset(
        Diagonal(), dataset, CROWDPOSE_14, boxes=dataset.ground_truth_boxes(),
        joint_threshold=threshold,
    )  # fmt: skip
    assert [result["score"] for result in done.results] == pytest.approx([score] * 2)
    found = evaluate_crowdpose(dataset.annotations, done.results)
    assert (found.AP_easy, found.AP_hard) == (pytest.approx(1.0), pytest.approx(1.0))


def test_the_command_measures_it(
    crowdpose_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class StandIn(Diagonal):
        spec = SimpleNamespace(
            skeleton=CROWDPOSE_14, precision="fp32", size_wh=(192, 256),
            flip_test=False, calibration=(1.0, 0.0),
        )  # fmt: skip
        info = SimpleNamespace(provider="StandIn", model=__file__)

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(open, "PoseEstimator", StandIn)
    target = crowdpose_root / "report.json"
    arguments = ["--dataset", "crowdpose", "--data-root", str(crowdpose_root)]
    arguments += ["--in-process", "--repeats", "0"]
    assert main([*arguments, "--protocol", "opec-12", "--json", str(target)]) == 0
    assert json.loads(target.read_text())["protocol"]["evaluator"] == "opec-12"
    assert main([*arguments, "--joint-threshold", "0.01", "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    (row,) = report["models"]
    assert row["accuracy"]["AP_easy"] == row["accuracy"]["AP_hard"] == pytest.approx(1.0)
    assert "AP_medium" not in row["accuracy"]  # no photo of that level
    assert (report["protocol"]["dataset"], report["protocol"]["joint_threshold"]) == (
        "crowdpose",
        0.01,
    )
    assert "AP_hard" in capsys.readouterr().out
    StandIn.spec = SimpleNamespace(**{**vars(StandIn.spec), "skeleton": COCO_17})
    with pytest.raises(DatasetError, match="14 keypoints"):
        main(arguments)
