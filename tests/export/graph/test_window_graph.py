"""The wide window of the decoder, and the spread of sharpened bins, inside the fused graph."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch

from cfpose_export.graph.rules import LOGITS, read_spec
from cfpose_export.graph.trace import build_pose
from cfpose_export.proof.compare import Bounds
from cfpose_export.proof.crops import read_people
from cfpose_export.proof.pose import judge, measure
from cfpose_sdk.keypoints import calibrate, covariance, decode_simcc, expected_oks
from cfpose_training.nets.fused import FusedPose
from cfpose_training.nets.pose_net import RefinedPoseNet
from tests.export.graph_cases import run

Built = tuple[FusedPose, onnx.ModelProto]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "flip test"])
def built(request: pytest.FixtureRequest, fused: FusedPose) -> Built:
    """The tiny model with windows and sharpened bins, of one view and of two."""
    assert fused.refiner is not None
    spec = dataclasses.replace(
        fused.spec,
        oks_window=1.5,
        evidence="spread",
        spread_temperature=0.6,
        spread_isotropy=0.5,
        flip_test=request.param,
        calibration=(0.9, 4.0),
    )
    other = FusedPose(RefinedPoseNet(fused.pose, fused.refiner, spec), spec)
    return other, build_pose(other)


@pytest.mark.parametrize("people", [0, 1, 4])
def test_the_graph_decodes_as_the_reference(built: Built, people: int) -> None:
    """The coarse pose from the logits inside the graph; no torch in between."""
    fused, model = built
    got = run(model, read_people(None, fused.spec, 7)[:people], *LOGITS)
    assert got["coarse"].shape == (people, 17, 2)
    if not people:
        return
    logits, spec = (got["x_logits"], got["y_logits"]), fused.spec
    expected, _ = decode_simcc(*logits, spec.split_ratio, spec.decode, spec.windows)
    np.testing.assert_allclose(got["coarse"], expected, atol=0.01)
    narrow, _ = decode_simcc(*logits, spec.split_ratio, spec.decode)
    assert np.abs(narrow - expected).max() > 0.5


def test_covariance_and_confidence_in_the_graph_are_those_of_the_reference(built: Built) -> None:
    fused, model = built
    got, spec = run(model, read_people(None, fused.spec, 7), *LOGITS), fused.spec
    inputs = got["x_logits"], got["y_logits"], got["keypoints"], 2.0
    expected = covariance(*inputs, temperature=0.6, isotropy=0.5)
    np.testing.assert_allclose(got["covariance"], expected, rtol=1e-4)
    assert not np.allclose(covariance(*inputs), expected, rtol=0.1)
    oks = expected_oks(got["keypoints"], expected, spec.skeleton.oks_sigmas)
    np.testing.assert_allclose(got["confidence"], calibrate(oks, spec.calibration), rtol=1e-4)


def test_the_proof_covers_it_and_the_spec_travels(built: Built) -> None:
    fused, model = built
    judge(measure(fused, model, read_people(None, fused.spec), Bounds()), Bounds())
    assert read_spec(model) == fused.spec


def test_the_refiner_starts_from_the_wide_window(built: Built) -> None:
    fused, _ = built
    crops = torch.from_numpy(read_people(None, fused.spec, 4))
    assert fused.refiner is not None
    narrow = dataclasses.replace(fused.spec, oks_window=0.0)
    other = FusedPose(RefinedPoseNet(fused.pose, fused.refiner, narrow), narrow).run(crops)
    assert not torch.equal(other.keypoints, fused.run(crops).keypoints)
