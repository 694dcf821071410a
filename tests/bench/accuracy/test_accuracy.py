"""The evaluator against cases worked out by hand, and against pycocotools itself."""

# ruff: noqa: SIM300  (takes the field name AP for a constant)

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cfpose_bench.accuracy.coco import STAT_NAMES, evaluate
from cfpose_sdk.errors import DatasetError
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14, Skeleton

Build = Callable[..., dict[str, Any]]
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def test_perfect_poses_score_one(person: Build, annotate: Build, pose: Build) -> None:
    # 50² px is a medium person, 100² px a large one; annotation id 0 must count like any other
    people = [person(1, size=50), person(1, 150), person(7)]
    found = evaluate(annotate(people), [pose(p) for p in people])
    for name in STAT_NAMES:
        assert getattr(found, name) == pytest.approx(1.0, abs=1e-12), name
    assert (found.images, found.instances, found.ignored, found.poses) == (2, 3, 0, 3)
    assert found.per_image[1] == (2, 2, 2)
    assert found.per_image[7] == (1, 1, 1)


@pytest.mark.parametrize("skeleton", [COCO_17, CROWDPOSE_14])
@pytest.mark.parametrize("labelled", [1, 5, None])
@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0, 9.3, 14.0, 20.0, 40.0])
def test_a_shift_of_all_joints_gives_the_closed_form_oks(
    person: Build,
    annotate: Build,
    pose: Build,
    skeleton: Skeleton,
    labelled: int | None,
    shift: float,
) -> None:
    one = person(1, labelled=labelled, skeleton=skeleton)
    sigmas = np.array(skeleton.oks_sigmas)[:labelled]
    oks = np.exp(-(shift**2) / (2 * one["area"] * (2 * sigmas) ** 2)).mean()
    assert np.abs(THRESHOLDS - oks).min() > 1e-3, "the case must not sit on a threshold"
    found = evaluate(annotate([one], skeleton=skeleton), [pose(one, 1.0, shift)], skeleton=skeleton)
    assert found.AP == pytest.approx((oks > THRESHOLDS).mean(), abs=1e-12)
    assert found.AP50 == pytest.approx(float(oks > 0.5), abs=1e-12)
    assert found.per_image[1].matched == int(oks > 0.5)


def test_a_missed_person_ends_the_recall(person: Build, annotate: Build, pose: Build) -> None:
    people = [person(1), person(2)]
    found = evaluate(annotate(people), [pose(people[0])])
    assert found.AP == pytest.approx(51 / 101, abs=1e-12)  # recall points 0.00 … 0.50
    assert found.AR == pytest.approx(0.5)
    assert found.per_image[2] == (1, 0, 0)


def test_a_better_scored_false_pose_halves_the_precision(
    person: Build, annotate: Build, pose: Build
) -> None:
    one = person(1)
    wrong = pose(one, 0.9, shift_x=500.0)
    assert evaluate(annotate([one]), [wrong, pose(one, 0.8)]).AP == pytest.approx(0.5)
    # below the hit it costs nothing: recall is complete before it
    late = {**wrong, "score": 0.7}
    assert evaluate(annotate([one]), [late, pose(one, 0.8)]).AP == pytest.approx(1.0)


@pytest.mark.parametrize(
    "ignored", [{"labelled": 0}, {"labelled": 0, "iscrowd": 1}, {"iscrowd": 1}]
)
def test_people_without_keypoints_and_crowds_are_ignored(
    person: Build, annotate: Build, pose: Build, ignored: dict[str, int]
) -> None:
    one, other = person(1), person(1, 200, **ignored)
    inside = pose(person(1, 200), 1.0)
    found = evaluate(annotate([one, other]), [pose(one, 0.5), inside])
    assert found.AP == pytest.approx(1.0)
    assert (found.instances, found.ignored) == (1, 1)
    assert evaluate(annotate([one]), [pose(one, 0.5), inside]).AP == pytest.approx(0.5)


def test_only_the_twenty_best_poses_of_a_photo_count(
    person: Build, annotate: Build, pose: Build
) -> None:
    one = person(1)
    wrong = [pose(one, 0.9, 500.0 + 300 * i) for i in range(20)]
    assert evaluate(annotate([one]), [*wrong, pose(one, 0.5)]).AP == 0.0
    assert evaluate(annotate([one]), [*wrong[:19], pose(one, 0.5)]).AP == pytest.approx(1 / 20)


@pytest.mark.parametrize(("false_size", "medium_ap"), [(60, 0.5), (500, 1.0)])
def test_a_false_pose_counts_in_its_own_size_class(
    person: Build, annotate: Build, pose: Build, false_size: float, medium_ap: float
) -> None:
    one = person(1, size=80)  # medium: below 96² px
    found = evaluate(annotate([one]), [pose(one, 0.5), pose(person(1, 900, 900, false_size), 0.9)])
    assert found.AP == pytest.approx(0.5)
    assert found.APM == pytest.approx(medium_ap)  # by the extent of the pose's joints


def test_restriction_to_photos(person: Build, annotate: Build, pose: Build) -> None:
    people = [person(1), person(2), person(3)]
    results = [pose(people[0]), pose(people[1], 0.9, 500.0)]
    truth = annotate(people)
    assert evaluate(truth, results, image_ids=[1]).AP == pytest.approx(1.0)
    assert evaluate(truth, results, image_ids=[1, 3]).AP == pytest.approx(51 / 101)
    assert evaluate(truth, results, image_ids=[2, 3]).AP == 0.0
    with pytest.raises(DatasetError, match="99"):
        evaluate(truth, results, image_ids=[1, 99])


def test_nothing_found_is_zero_and_nobody_there_is_undefined(
    person: Build, annotate: Build, pose: Build
) -> None:
    empty = evaluate(annotate([person(1)]), [], bootstrap=10)
    assert (empty.AP, empty.AR, empty.AP_ci95, empty.poses) == (0.0, 0.0, (0.0, 0.0), 0)
    assert math.isnan(empty.APM)  # nobody of medium size
    assert "APM" not in empty.to_dict()
    assert empty.to_dict()["AP_ci95"] == [0.0, 0.0]
    nobody = evaluate(annotate([], photos=[1, 2]), [pose(person(1))], bootstrap=10)
    assert math.isnan(nobody.AP)
    assert nobody.AP_ci95 is None
    assert nobody.to_dict()["AP"] is None
    assert not {"AP50", "AP_ci95", "per_image"} & nobody.to_dict().keys()
    assert evaluate(annotate([person(1)]), [], image_ids=[]).images == 0
    json.dumps(empty.to_dict(), allow_nan=False)


def test_the_callers_data_is_not_changed_and_nothing_is_printed(
    person: Build, annotate: Build, pose: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    one = person(1)
    truth, results = annotate([one]), [pose(one)]
    before = json.dumps([truth, results])
    evaluate(truth, results, bootstrap=5)
    assert json.dumps([truth, results]) == before
    assert capsys.readouterr() == ("", "")


def test_a_model_of_another_skeleton_is_refused(person: Build, annotate: Build) -> None:
    truth = annotate([person(1)])
    with pytest.raises(DatasetError, match=r"17 keypoints nose.*14 keypoints left_shoulder"):
        evaluate(truth, [], skeleton=CROWDPOSE_14)
    truth["categories"][0]["keypoints"].reverse()
    with pytest.raises(DatasetError, match="skeleton"):
        evaluate(truth, [])
    del truth["categories"][0]["keypoints"]  # without names the number decides
    assert evaluate(truth, []).AP == 0.0
    with pytest.raises(DatasetError, match="17 keypoints"):
        evaluate(truth, [], skeleton=CROWDPOSE_14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": [1.0] * 42}, "51 numbers"),
        ({"keypoints": [math.nan] * 51}, "not finite"),
        ({"score": math.inf}, "not finite"),
        ({"score": "high"}, "needs image_id"),
        ({"image_id": 5}, "not annotated"),
        ({"image_id": "1"}, "not annotated"),
    ],
)
def test_results_that_do_not_fit_are_refused(
    person: Build, annotate: Build, pose: Build, change: dict[str, Any], message: str
) -> None:
    one = person(1)
    with pytest.raises(DatasetError, match=f"result 1.*{message}"):
        evaluate(annotate([one]), [pose(one), {**pose(one), **change}])


@given(st.permutations(range(6)), st.integers(0, 2**32 - 1))
def test_the_order_of_results_does_not_matter(order: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.permutation(6) / 6 + 0.1
    people = [
        {
            "id": i,
            "image_id": i // 2,
            "category_id": 1,
            "iscrowd": 0,
            "bbox": [0, 0, 100, 100],
            "area": 1e4,
            "keypoints": [v for x, y in rng.uniform(0, 100, (17, 2)) for v in (x, y, 2)],
        }
        for i in range(6)
    ]
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(3)],
        "annotations": people,
        "categories": [{"id": 1}],
    }
    results = []
    for person, score in zip(people, scores, strict=True):
        points = np.array(person["keypoints"]).reshape(-1, 3)
        points[:, :2] += rng.normal(0, 5, (17, 2))
        results.append(
            {"image_id": person["image_id"], "keypoints": points.ravel(), "score": score}
        )
    assert evaluate(truth, [results[i] for i in order]) == evaluate(truth, results)


def synthetic_results(path: Path, seed: int) -> list[dict[str, Any]]:
    """Annotated people, some missed, the others with noise of many sizes, and false poses."""
    rng = np.random.default_rng(seed)
    results = []
    for person in json.loads(path.read_text())["annotations"]:
        if rng.random() < (0.1 if person["num_keypoints"] else 0.7):
            continue
        points = np.array(person["keypoints"], dtype=float).reshape(-1, 3)
        if not person["num_keypoints"]:
            points[:, :2] = rng.uniform(0, 400, (17, 2))
        noise = np.sqrt(person["area"]) * 0.08 * rng.random()
        points[:, :2] += rng.normal(size=(17, 2)) * noise
        results.append(
            {
                "image_id": person["image_id"],
                "category_id": 1,
                "keypoints": points.ravel().tolist(),
                "score": float(rng.random()),
            }
        )
    return results


def test_equals_pycocotools_at_full_scale(shared_dir: Path) -> None:
    path = shared_dir / "data/coco/person_keypoints_val_labels_only.json"
    results = synthetic_results(path, seed=2025)
    found = evaluate(path, results)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        reference = COCOeval(truth, truth.loadRes(results), "keypoints")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    assert found.images == 2051
    assert found.instances == 4732
    assert 0.2 < found.AP < 0.8
    np.testing.assert_allclose([getattr(found, n) for n in STAT_NAMES], reference.stats, atol=1e-9)
