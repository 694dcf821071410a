"""Drift, reliability, boxes, flip test and verdicts on cases with known answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpose_bench.accuracy.boxes import box_accuracy
from cfpose_bench.accuracy.coco import Accuracy
from cfpose_bench.accuracy.oks import padded_area
from cfpose_bench.accuracy.reliability import Judged, calibration, judge
from cfpose_bench.data.dataset import KeypointDataset, open_dataset, open_demo
from cfpose_bench.measurement import Timing
from cfpose_bench.models.wrappers import FlipTested, unmirror
from cfpose_bench.report.report import Bounds, Row, reasons, report
from cfpose_bench.run.protocol import Protocol, with_preset
from cfpose_bench.run.rows import delta_ap, drift
from cfpose_sdk.detectors.base import as_detections
from cfpose_sdk.errors import DatasetError, InputError
from cfpose_sdk.media.image import read_image
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17

Build = Callable[..., dict[str, Any]]


def poses(xy: Any, confidence: float = 0.5, boxes: Any = None) -> Poses:
    xy = np.asarray(xy, dtype=np.float32)
    boxes = np.tile([0, 0, 9, 9], (len(xy), 1)) if boxes is None else boxes
    return Poses(
        xy=xy,
        confidence=np.full(xy.shape[:2], confidence, np.float32),
        boxes=np.asarray(boxes, dtype=np.float32),
        box_scores=np.ones(len(xy), np.float32),
        skeleton=COCO_17,
        image_size_wh=(100, 100),
    )


@given(st.integers(0, 2**32 - 1))
def test_drift_is_what_was_added(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.uniform(0, 90, (2, 17, 2))
    direction = rng.normal(size=(2, 17, 2))
    length = rng.uniform(0, 5, (2, 17))
    moved = base + direction / np.linalg.norm(direction, axis=-1, keepdims=True) * length[..., None]
    found = drift({1: poses(moved), 2: None}, {1: poses(base), 2: None})
    assert found is not None
    assert found["max_px"] == pytest.approx(length.max(), abs=1e-4)
    assert found["mean_px"] == pytest.approx(length.mean(), abs=1e-4)
    assert found["p99_px"] == pytest.approx(np.percentile(length, 99), abs=1e-4)
    assert (found["joints"], found["sure_joints"]) == (34, 34)
    unsure = drift({1: poses(moved)}, {1: poses(base, 0.1)})
    assert unsure is not None
    assert "sure_max_px" not in unsure


def test_drift_needs_the_same_boxes() -> None:
    one = poses(np.zeros((1, 17, 2)))
    with pytest.raises(DatasetError, match="different boxes"):
        drift({1: one}, {1: poses(np.zeros((1, 17, 2)), boxes=[[0, 0, 20, 20]])})
    nobody = poses(np.zeros((0, 17, 2)))
    assert drift({1: one}, {2: one}) is None
    assert drift({1: nobody}, {1: nobody}) is None
    assert delta_ap(0.5, 0.75) == -0.25
    assert delta_ap(math.nan, 0.75) is None


def dataset_of(truth: dict[str, Any]) -> KeypointDataset:
    return KeypointDataset("t", truth, {i["id"]: Path("x") for i in truth["images"]})


def test_a_joint_is_good_up_to_its_own_distance(person: Build, annotate: Build) -> None:
    one = person(1)
    truth = np.array(one["keypoints"]).reshape(17, 3)
    reach = 2 * np.array(COCO_17.oks_sigmas) * math.sqrt(2 * math.log(2) * one["area"])
    for factor, good in ((0.999, True), (1.001, False)):
        xy = truth[None, :, :2].copy()
        xy[..., 0] += reach * factor
        far = poses(np.concatenate([xy + 500, xy]))
        (judged,) = judge({1: far}, dataset_of(annotate([one])), COCO_17)
        assert judged.good is not None
        assert judged.good.all() == judged.good.any() == good
        assert judged.oks == pytest.approx(0.5 ** (factor**2), abs=1e-6)  # of the nearer pose
    (nobody,) = judge({1: poses(np.zeros((0, 17, 2)))}, dataset_of(annotate([one])), COCO_17)
    assert (nobody.oks, nobody.xy) == (0.0, None)


def test_calibration_error_by_hand() -> None:
    truth = np.ones((10, 3))
    judged = [
        Judged(1, (0, 0, 1, 1), truth, 1.0, truth[:, :2], np.full(10, said), np.arange(10) < right)
        for said, right in ((0.95, 9), (0.25, 5))
    ]
    found = calibration(judged)
    assert found is not None
    assert found["ece"] == pytest.approx((0.05 + 0.25) / 2)
    assert [b["good"] for b in found["bins"]] == [0.5, 0.9]
    assert calibration([Judged(1, (0, 0, 1, 1), truth, 0.0)]) is None


def test_box_accuracy_by_hand(person: Build, annotate: Build) -> None:
    people = [person(1), person(1, 200), person(2, labelled=0), person(2, 200, iscrowd=1)]
    truth = annotate(people)
    boxes = {1: np.array([[10, 20, 110, 120, 0.9], [900, 900, 950, 950, 0.8]]),
             2: np.array([[10, 20, 110, 120, 0.7], [210, 30, 260, 90, 0.95]])}  # fmt: skip
    found = box_accuracy(truth, boxes, [1, 2])
    assert found is not None
    # by score: in a crowd (ignored), right, wrong, right; three people, two found
    assert found["recall50"] == pytest.approx(2 / 3)
    expected = (34 * 1.0 + 33 * (2 / 3)) / 101  # recall to 1/3 at 1, to 2/3 at 2/3
    assert found["AP50"] == pytest.approx(expected)
    assert (found["people"], found["boxes"]) == (3, 4)
    empty = box_accuracy(truth, {}, [1, 2])
    assert empty is not None
    assert (empty["AP50"], empty["recall50"]) == (0.0, 0.0)
    assert box_accuracy(annotate([], photos=[1]), {}, [1]) is None


class Mirrored:
    """A symmetric model: joints at fixed places of the box, left ones on the image's right."""

    def __init__(self, shift: float) -> None:
        self.shift = shift  # an error that does not turn with the photo

    def predict(self, image: Any, /, boxes: Any = None) -> Poses:
        people = as_detections([[10, 10, 30, 50]] if boxes is None else boxes)
        centre = (people.boxes[:, None, :2] + people.boxes[:, None, 2:]) / 2
        places = np.zeros((17, 2), np.float32)
        for left, right in COCO_17.flip_pairs:
            places[left, 0], places[right, 0] = left, -left
        found = poses(centre + places + [self.shift, 0], boxes=people.boxes)
        return replace(found, speed_ms={"infer": 2.0, "total": 2.0})


def test_the_flip_test_cancels_what_does_not_turn_with_the_photo(root: Path) -> None:
    photo = root / "examples/photos/street.jpg"
    assert read_image(photo).shape[1] > 100
    for boxes in ([[100, 100, 160, 300], [7, 8, 30, 90]], None):
        exact = Mirrored(0.0).predict(photo, boxes=boxes)
        found = FlipTested(Mirrored(4.0)).predict(photo, boxes=boxes)
        np.testing.assert_allclose(found.xy, exact.xy, atol=1e-4)
        assert found.speed_ms["infer"] == 4.0
    assert len(FlipTested(Mirrored(4.0)).predict(photo, boxes=np.zeros((0, 4)))) == 0
    xy = np.random.default_rng(0).normal(size=(3, 17, 2)).astype(np.float32)
    twice = unmirror(*unmirror(xy, xy[..., 0], COCO_17, 50), COCO_17, 50)
    np.testing.assert_allclose(twice[0], xy, atol=1e-5)


def test_presets() -> None:
    paper = with_preset(Protocol(), "paper", ("boxes.json",))
    assert (paper.flip_test, paper.joint_threshold, paper.oks_nms("boxes.json")) == (
        True, 0.01, 0.9,
    )  # fmt: skip
    assert paper.padded_oks
    assert with_preset(Protocol(), "deployed", None).boxes == ("detector",)
    assert with_preset(Protocol(), None, None).boxes == ("gt",)
    with pytest.raises(InputError, match="published boxes"):
        with_preset(Protocol(), "paper", ("detector",))
    # a 30 x 100 box becomes 75 x 100 at 3:4, then 1.25 as long on each side
    assert padded_area([[30, 100], [75, 10]], (192, 256)) == pytest.approx(7500 * 1.25**2)


def row(ap: float = 0.5, p99: float = 20.0, p50: float = 10.0, **more: Any) -> Row:
    accuracy = Accuracy(ap, *[0.1] * 9, images=2, instances=3, ignored=0, poses=3)
    latency = {"total": Timing(p50, 15.0, p99, 11.0, 2)}
    return Row("m", "gt", "fp32", "P", 1, accuracy, latency, **more)


@pytest.mark.parametrize(
    ("bounds", "measured", "said"),
    [
        (Bounds(min_ap=0.5), row(), ""),
        (Bounds(min_ap=0.51), row(), "AP 0.500 is below 0.51"),
        (Bounds(min_ap=0.1), row(math.nan), "AP is undefined"),
        (Bounds(min_ap=0.9), row(is_peer=True), ""),
        (Bounds(max_p99_ms=19.9), row(), "p99 of a photo 20.0 ms"),
        (Bounds(max_drift=0.1), row(drift={"max_px": 0.2}), "drift of a joint is 0.2 px"),
        (Bounds(max_drift=0.3), row(drift={"max_px": 0.2}), ""),
        (Bounds(max_drift=0.3), row(), "drift was not measured"),
        (Bounds(max_drift=0.1), row(reference=True), ""),
    ],
)
def test_bounds(bounds: Bounds, measured: Row, said: str) -> None:
    found = reasons(report({}, [measured]), [measured], bounds)
    assert len(found) == bool(said)
    assert said in "".join(found)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (row(), ""),
        (row(0.4951), ""),
        (row(0.49), "AP fell from 0.500 to 0.490"),
        (row(p50=11.9), ""),
        (row(p50=12.5), "takes 12.5 ms, it took 10.0"),
        (replace(row(), model="other"), "is not in the baseline"),
    ],
)
def test_a_baseline(tmp_path: Path, now: Row, said: str) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps(report({"images": 2}, [row()])))
    found = reasons(report({"images": 2}, [now]), [now], Bounds(baseline=old))
    assert len(found) == bool(said)
    assert said in "".join(found)
    with pytest.raises(InputError, match="another protocol"):
        reasons(report({"images": 3}, [now]), [now], Bounds(baseline=old))
    old.write_text("{}")
    with pytest.raises(InputError, match="no report"):
        reasons(report({}, [now]), [now], Bounds(baseline=old))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("joint_threshold", 0.2),
        ("preset", "paper"),
        ("oks_nms_area", "padded box"),
        ("detector", "yolo"),
        ("detector_threshold", 0.5),
        ("device", "cuda"),
        ("isolation", "one process for all"),
    ],
)
def test_a_baseline_of_another_protocol(tmp_path: Path, key: str, value: Any) -> None:
    """Also where only one of the two reports has the key."""
    old, bounds = tmp_path / "old.json", Bounds(baseline=tmp_path / "old.json")
    for before, after in (({}, {key: value}), ({key: value}, {})):
        old.write_text(json.dumps(report(before, [row()])))
        with pytest.raises(InputError, match=rf"another protocol \({key} "):
            reasons(report(after, [row()]), [row()], bounds)
        assert reasons(report(before, [row()]), [row()], bounds) == []


def test_a_baseline_of_another_oks_nms(tmp_path: Path) -> None:
    old, bounds = tmp_path / "old.json", Bounds(baseline=tmp_path / "old.json")
    old.write_text(json.dumps(report({"oks_nms": {"gt": None}}, [row()])))
    more = {"oks_nms": {"gt": None, "detector": 0.9}}
    assert reasons(report(more, [row()]), [row()], bounds) == []
    with pytest.raises(InputError, match=r"another protocol \(oks_nms"):
        reasons(report({"oks_nms": {"gt": 0.9}}, [row()]), [row()], bounds)


def test_times_of_another_provider_are_not_compared(tmp_path: Path) -> None:
    old, slow = tmp_path / "old.json", replace(row(p50=100.0), provider="OpenVINO")
    old.write_text(json.dumps(report({}, [row()])))
    assert reasons(report({}, [slow]), [slow], Bounds(baseline=old)) == []


def test_the_demo_has_boxes_and_no_truth(tmp_path: Path) -> None:
    demo = open_demo()
    boxes = demo.ground_truth_boxes()
    assert sorted(map(len, boxes.values())) == [2, 7]
    assert not demo.has_keypoints
    with pytest.raises(DatasetError, match="clone"):
        open_demo(tmp_path)


def test_boxes_without_keypoints_stay_out_of_other_data_sets(dataset_folder: Path) -> None:
    boxes = open_dataset(dataset_folder).ground_truth_boxes()
    assert [len(boxes[i]) for i in (1, 2, 3)] == [2, 1, 0]
