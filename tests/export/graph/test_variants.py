"""Flip test, Gather lookup and covariance inside the graph, against torch and the references."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from cfpose_export.graph.rules import LOGITS, POSE_OUTPUTS, check_graph, read_spec
from cfpose_export.graph.trace import build_pose
from cfpose_export.proof.compare import Bounds
from cfpose_export.proof.crops import read_people
from cfpose_export.proof.pose import judge, measure
from cfpose_sdk.keypoints import calibrate, covariance, expected_oks, widen
from cfpose_training.nets.flip import flip_test
from cfpose_training.nets.fused import FusedPose
from cfpose_training.nets.pose_net import RefinedPoseNet
from tests.export.graph_cases import run

Variant = tuple[FusedPose, onnx.ModelProto]


@pytest.fixture(scope="module")
def variant(fused: FusedPose) -> Variant:
    """The tiny model with flip test, Gather lookup, fitted covariance, confidence from spread."""
    assert fused.refiner is not None
    spec = dataclasses.replace(
        fused.spec,
        flip_test=True,
        joint_lookup="gather",
        covariance_scale=0.6,
        covariance_odds_power=0.3,
        evidence="spread",
        calibration=(0.9, 4.0),
    )
    other = FusedPose(RefinedPoseNet(fused.pose, fused.refiner, spec), spec)
    return other, build_pose(other)


@pytest.mark.parametrize("people", [0, 1, 5])
def test_the_flip_test_in_the_graph_is_that_of_training(
    fused: FusedPose, variant: Variant, people: int
) -> None:
    """Two passes in torch, with GridSample; one batch in the graph, with Gather."""
    crops = read_people(None, fused.spec, 7)[:people]
    got = run(variant[1], crops)
    assert fused.refiner is not None
    network = RefinedPoseNet(fused.pose, fused.refiner, fused.spec)
    with torch.inference_mode():
        xy, _ = flip_test(network, fused.normalise(torch.from_numpy(crops)), fused.spec)
    assert got["covariance"].shape == (people, 17, 2, 2)
    assert got["keypoints"].shape == (people, 17, 2)
    assert np.abs(got["keypoints"] - xy.numpy()).max(initial=0) <= 1e-3
    if people:  # it is not the plain answer
        plain = fused.run(torch.from_numpy(crops)).keypoints.numpy()
        assert np.abs(got["keypoints"] - plain).max() > 0.1


def test_the_variant_keeps_to_the_rules_and_to_torch(variant: Variant) -> None:
    fused, model = variant
    check_graph(model, "crops", POSE_OUTPUTS)
    judge(measure(fused, model, read_people(None, fused.spec), Bounds()), Bounds())
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["GridSample"] == 0
    assert counts["GatherElements"] == 12  # 4 taps in 3 maps
    constants = {tensor.name for tensor in model.graph.initializer}
    assert [n.name for n in model.graph.node if set(n.input) <= constants | {""}] == []
    spec = read_spec(model)
    assert (spec.flip_test, spec.joint_lookup, spec.covariance_scale) == (True, "gather", 0.6)


def test_both_views_share_one_set_of_weights(model: onnx.ModelProto, variant: Variant) -> None:
    def numbers(graph: onnx.GraphProto) -> int:
        floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        return sum(math.prod(tensor.dims) for tensor in floats)

    def layers(graph: onnx.GraphProto) -> int:
        return sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in graph.node)

    assert numbers(variant[1].graph) == pytest.approx(numbers(model.graph), rel=0.01)
    assert layers(variant[1].graph) == layers(model.graph)


def test_the_variant_is_written_the_same_way_twice(variant: Variant) -> None:
    fused, model = variant
    again = build_pose(fused).SerializeToString(deterministic=True)
    assert again == model.SerializeToString(deterministic=True)


def test_covariance_in_the_graph_is_that_of_the_reference(
    fused: FusedPose, model: onnx.ModelProto, variant: Variant
) -> None:
    """About the refined keypoints, from the logits inside the graph; no torch in between."""
    crops = read_people(None, fused.spec, 7)
    for graph, scale, power in ((model, 1.0, 0.0), (variant[1], 0.6, 0.3)):
        got = run(graph, crops, *LOGITS)
        expected = covariance(got["x_logits"], got["y_logits"], got["keypoints"], 2.0, scale)
        expected = widen(expected, got["confidence"], power)
        np.testing.assert_allclose(got["covariance"], expected, rtol=1e-4)
        assert np.linalg.det(got["covariance"]).min() > 0


def test_confidence_from_the_spread_is_that_of_the_reference(variant: Variant) -> None:
    fused, model = variant
    got = run(model, read_people(None, fused.spec, 7), *LOGITS)
    moments = covariance(got["x_logits"], got["y_logits"], got["keypoints"], 2.0)
    oks = expected_oks(got["keypoints"], moments, fused.spec.skeleton.oks_sigmas)
    expected = calibrate(oks, fused.spec.calibration)
    np.testing.assert_allclose(got["confidence"], expected, rtol=1e-4)
    assert np.ptp(expected) > 0.01
    assert run(model, read_people(None, fused.spec, 1)[:0])["confidence"].shape == (0, 17)


def test_a_graph_of_version_1_has_no_covariance_and_is_read(root: Path) -> None:
    model = onnx.load_model(root / "cfpose_sdk" / "models" / "cfpose-s.onnx")
    check_graph(model, "crops", POSE_OUTPUTS)
    assert read_spec(model).joint_lookup == "gridsample"
