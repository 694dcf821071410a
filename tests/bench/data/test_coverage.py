"""Whether covariances cover as they should: known Gaussians, broken matrices, files, a real run."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cfpose_bench.accuracy.coco import evaluate
from cfpose_bench.accuracy.reliability import Judged, coverage, judge, squared_sigmas
from cfpose_bench.cli import main
from cfpose_bench.data.dataset import KeypointDataset, open_dataset
from cfpose_bench.models.base import plain_poses, poses_of
from cfpose_bench.models.open import parse_name
from cfpose_bench.models.workers import InlineWorker, Setting
from cfpose_bench.report.page import page
from cfpose_bench.report.report import (
    Bounds,
    Row,
    reasons,
    report,
    side_table,
    write_csv,
    write_json,
)
from cfpose_bench.run.predictions import Store
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17

Build = Callable[..., dict[str, Any]]
Floats = NDArray[np.float64]

ONE_SIGMA, TWO_SIGMA = 1 - math.exp(-1 / 2), 1 - math.exp(-4 / 2)  # of a Gaussian in the plane


def spreads(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Square roots (..., 2, 2) of covariances: long and round ellipses at all angles."""
    turn = rng.uniform(0, math.pi, shape)
    axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.moveaxis(axes, (0, 1), (-2, -1)) * rng.uniform(0.1, 4, (*shape, 1, 2))


def poses(xy: Any, covariance: Any) -> Poses:
    people = len(xy)
    return Poses(
        xy=np.asarray(xy, dtype=np.float32),
        confidence=np.full((people, 17), 0.5, np.float32),
        boxes=np.tile(np.float32([0, 0, 9, 9]), (people, 1)),
        box_scores=np.ones(people, np.float32),
        skeleton=COCO_17,
        image_size_wh=(320, 240),
        covariance=covariance,
    )


def one(error: Any, covariance: Any, seen: Any = 2.0) -> Judged:
    """A person whose 17 joints are all off by `error` under one covariance."""
    truth = np.column_stack([np.full((17, 2), 50.0), np.broadcast_to(seen, 17)])
    matrices = None if covariance is None else np.tile(np.array(covariance, float), (17, 1, 1))
    return Judged(1, (0, 0, 9, 9), truth, 0.5, truth[:, :2] + error, covariance=matrices)


def test_errors_of_the_stated_gaussians_are_covered_as_gaussians_are(
    person: Build, annotate: Build
) -> None:
    rng = np.random.default_rng(0)
    people = [person(n, labelled=12) for n in range(3000)]
    truth = np.array(people[0]["keypoints"]).reshape(17, 3)[:, :2]
    root = spreads(rng, (3000, 17))
    xy = truth + (root @ rng.normal(size=(3000, 17, 2, 1)))[..., 0]
    root[:, 12:] = 0  # joints without a label do not count
    matrices = root @ np.swapaxes(root, -1, -2)
    far, sure = np.full((17, 2), 5000.0), np.tile(np.eye(2), (17, 1, 1))  # not this person
    photos = {n: poses([far, xy[n]], [sure, matrices[n]]) for n in range(3000)}
    dataset = KeypointDataset("t", annotate(people), {n: Path("x") for n in range(3000)})
    found = coverage(judge(photos, dataset, COCO_17))
    assert found is not None
    assert (found["joints"], found["left_out"]) == (36000, 0)
    assert found["within_1_sigma"] == pytest.approx(ONE_SIGMA, abs=0.01)  # standard error 0.0026
    assert found["within_2_sigma"] == pytest.approx(TWO_SIGMA, abs=0.01)
    assert (round(100 * ONE_SIGMA, 1), round(100 * TWO_SIGMA, 1)) == (39.3, 86.5)


@given(st.integers(0, 2**32 - 1))
def test_squared_sigmas_are_those_of_the_inverse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    root, xy, truth = spreads(rng, (9,)), *rng.uniform(-9, 9, (2, 9, 2))
    matrices = root @ np.swapaxes(root, -1, -2)
    slow = [
        (a - b) @ np.linalg.inv(m) @ (a - b) for a, b, m in zip(xy, truth, matrices, strict=True)
    ]
    np.testing.assert_allclose(squared_sigmas(xy, matrices, truth), slow, rtol=1e-6)


@pytest.mark.parametrize(
    ("error", "within"),
    [((2, 0), (1, 1)), ((0, 3), (1, 1)), ((2, 3), (0, 1)), ((4, 0), (0, 1)), ((0, 6.01), (0, 0))],
)
def test_the_ellipse_belongs_to_its_inside(
    error: tuple[float, float], within: tuple[int, int]
) -> None:
    found = coverage([one(error, [[4, 0], [0, 9]])])
    assert found is not None
    assert (found["within_1_sigma"], found["within_2_sigma"]) == within


@pytest.mark.parametrize(
    "matrix", [[[0, 0], [0, 0]], [[1, 1], [1, 1]], [[-1, 0], [0, -1]], [[1, 2], [2, 1]]]
)
def test_an_ellipse_without_area_covers_nothing(matrix: list[list[float]]) -> None:
    found = coverage([one((0, 0), matrix), one((0, 0), np.eye(2))])
    assert found == {"within_1_sigma": 0.5, "within_2_sigma": 0.5, "joints": 34, "left_out": 0}


def test_what_is_not_finite_or_not_there_is_left_out_and_counted() -> None:
    broken = [[math.nan, 0], [0, 1]], [[1, 0], [0, math.inf]]
    seen = np.where(np.arange(17) < 5, 2.0, 0.0)
    good, nobody = one((1, 1), np.eye(2), seen), Judged(1, (0, 0, 9, 9), np.ones((17, 3)), 0.0)
    unsure = [one((0, 0), matrix, seen) for matrix in (*broken, None)]
    found = coverage([good, *unsure, nobody])
    assert found == {"within_1_sigma": 0.0, "within_2_sigma": 1.0, "joints": 5, "left_out": 15}
    assert coverage(unsure[:2]) == {"joints": 0, "left_out": 10}
    assert coverage([one((0, 0), None), nobody]) is None
    assert coverage([nobody]) is None
    assert coverage([]) is None


def test_the_store_and_the_pipe_keep_covariances(tmp_path: Path) -> None:
    root = spreads(np.random.default_rng(1), (2, 17))
    known = poses(np.zeros((2, 17, 2)), root @ np.swapaxes(root, -1, -2))
    assert known.covariance is not None
    known.covariance[0, 3] = np.nan
    empty = Poses.empty(COCO_17, (9, 9))
    with closing(Store(tmp_path, {}, COCO_17)) as store:
        store.add(1, 0, known)
        store.add(2, 0, empty)
    older = {k: v for k, v in plain_poses(known).items() if k != "covariance"}
    with store.path.open("a") as file:  # as it was written before there were any
        file.write(json.dumps({"photo": 3, "turn": 0, "poses": older}) + "\n")
    with closing(Store(tmp_path, {}, COCO_17)) as again:
        kept = [again.done[n][1] for n in (1, 2, 3)]
    assert [found is not None and found.covariance is not None for found in kept] == [
        True,
        False,
        False,
    ]
    for found in (kept[0], poses_of(json.loads(json.dumps(plain_poses(known))), COCO_17)):
        assert found is not None
        np.testing.assert_array_equal(found.covariance, known.covariance)


def row(**more: Any) -> Row:
    nothing = {"images": [], "annotations": [], "categories": [{"id": 1}]}
    return Row("m", "gt", None, None, None, evaluate(nothing, []), {}, **more)


def test_reports_with_and_without_the_figure(dataset_folder: Path, tmp_path: Path) -> None:
    dataset, covered = open_dataset(dataset_folder), coverage([one((1, 1), np.eye(2))])
    protocol = {"dataset": "d", "images": 3, "instances": 3, "boxes": "gt"}
    new, old = report(protocol, [row(coverage=covered)]), report(protocol, [row()])
    for record, name in ((new, "new"), (old, "old")):
        write_json(record, tmp_path / f"{name}.json")
        write_csv(record, tmp_path / f"{name}.csv")
    read = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("new", "old")}
    assert read["new"]["models"][0]["coverage"] == covered
    assert "coverage" not in read["old"]["models"][0]
    (line,) = csv.DictReader((tmp_path / "new.csv").read_text().splitlines())
    assert (line["coverage.within_1_sigma"], line["coverage.joints"]) == ("0.0", "17")
    assert "coverage" not in (tmp_path / "old.csv").read_text()
    assert "<th>1 sigma</th><th>2 sigma</th>" in page(read["new"], [], dataset)
    assert "sigma" not in page(read["old"], [], dataset)
    head, cells = side_table([row(coverage=covered)]).splitlines()
    assert cells[head.index("1 sigma") :].split()[:2] == ["0.000", "1.000"]
    for baseline in ("new", "old"):
        bounds = Bounds(baseline=tmp_path / f"{baseline}.json")
        assert reasons(new, [row(coverage=covered)], bounds) == []


def test_the_bundled_models_coverage_resumed_or_not(dataset_folder: Path, tmp_path: Path) -> None:
    """Joints annotated at 0.5, 1.5 and 3 of the model's own sigmas from where it puts them."""
    annotations = dataset_folder / "annotations.json"
    truth = json.loads(annotations.read_text())
    truth["annotations"] = truth["annotations"][1:]  # one person a photo
    annotations.write_text(json.dumps(truth))
    dataset = open_dataset(dataset_folder)
    boxes, away = dataset.ground_truth_boxes(), np.repeat([0.5, 1.5, 3.0], [8, 5, 4])
    with closing(InlineWorker(parse_name("default"), Setting(device="cpu"))) as worker:
        for person in truth["annotations"][:2]:
            photo = person["image_id"]
            found = worker.predict(dataset.photos[photo], boxes=boxes[photo])
            assert found.covariance is not None
            step = np.linalg.cholesky(found.covariance[0].astype(np.float64))[..., 0]
            joints = np.column_stack([found.xy[0] + away[:, None] * step, np.full(17, 2)])
            person["keypoints"] = joints.ravel().tolist()
    annotations.write_text(json.dumps(truth))
    target, work = tmp_path / "report.json", tmp_path / "work"
    arguments = ["--dataset", str(dataset_folder), "--threads", "1", "--repeats", "0"]
    arguments += ["--resume", "--work", str(work), "--json", str(target)]
    for taken_up in (0, 3):
        assert main(arguments) == 0
        record = json.loads(target.read_text())
        assert record["protocol"]["taken_up"] == taken_up
        (model,) = record["models"]
        shares = {"within_1_sigma": 8 / 17, "within_2_sigma": 13 / 17}
        assert model["coverage"] == {**shares, "joints": 34, "left_out": 0}
        assert model["calibration"]["joints"] == 34
