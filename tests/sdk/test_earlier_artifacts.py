"""Artifacts of every earlier spec version open, with what they said and the defaults for the rest.

The files in `earlier_artifacts` were written by the code that had that version: a network that
points every joint at its crop's brightest pixel, and a finder that gives one box.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cfpose_sdk.detectors.base import PersonFinder
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import FINDER_VERSION, SPEC_VERSION, FinderSpec, ModelSpec

FILES = Path(__file__).parent / "earlier_artifacts"
FIRST = ModelSpec(
    "version 1", COCO_17, (48, 64), box_scale=1.3, calibration=(0.9, -0.1),
    trained_on=("photos",), license="Apache-2.0", metrics={"dev_AP": 0.25}, gate={"max_px": 0.01},
)  # fmt: skip
# version → what it brought, as its file has it
BROUGHT = {
    2: {"covariance_scale": 0.5, "joint_lookup": "gather"},
    3: {"covariance_odds_power": 0.25},
    4: {"evidence": "spread"},
    5: {"oks_window": 1.5},
    6: {"spread_temperature": 0.5, "spread_isotropy": 0.25},
    7: {"geometry": "udp"},
}


def test_there_is_one_of_each_earlier_version() -> None:
    poses = {f"pose-{version}.onnx" for version in range(1, SPEC_VERSION)}
    finders = {f"finder-{version}.onnx" for version in range(1, FINDER_VERSION)}
    assert {path.name for path in FILES.iterdir()} == poses | finders


@pytest.mark.parametrize("version", range(1, SPEC_VERSION))
def test_a_pose_model_opens(version: int) -> None:
    known = [values for brought, values in BROUGHT.items() if brought <= version]
    expected = dataclasses.replace(FIRST, name=f"version {version}")
    for values in known:
        expected = dataclasses.replace(expected, **values)
    image = np.zeros((128, 96, 3), dtype=np.uint8)
    image[60:64, 40:44] = 255
    path = FILES / f"pose-{version}.onnx"
    with PoseEstimator(path, device="cpu", threads=1) as estimator:
        assert estimator.spec == expected
        poses = estimator.predict(image, boxes=[[24, 32, 72, 96]])
    assert np.abs(poses.xy[0] - [41.5, 61.5]).max() <= 2.5
    assert poses.confidence.min() > 0.9
    assert (poses.covariance is None) == (version == 1)


def test_a_finder_opens() -> None:
    with PersonFinder(FILES / "finder-1.onnx", device="cpu", threads=1) as finder:
        assert finder.spec == FinderSpec(
            "version 1", (64, 64), threshold=0.4, nms_iou=0.6, trained_on=("photos",),
            license="Apache-2.0", metrics={"dev_recall": 0.5},
        )  # fmt: skip
        people = finder(np.zeros((64, 64, 3), dtype=np.uint8))
    np.testing.assert_array_equal(people.boxes, [[4, 4, 20, 60]])
