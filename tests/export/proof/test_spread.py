"""A graph's covariance is compared too: with torch's, and with the float32 graph's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from cfpose_export.proof.compare import Bound, Bounds, compare_runtimes, judge_agreement, spread_gap
from cfpose_export.proof.crops import Crops, read_people
from cfpose_export.proof.pose import judge, measure
from cfpose_sdk.backends import open_backend
from cfpose_sdk.errors import ExportError
from cfpose_training.nets.fused import FusedPose
from tests.export.graph_cases import scaled_covariance


@pytest.fixture(scope="module")
def crops(fused: FusedPose) -> Crops:
    return read_people(None, fused.spec)


@pytest.mark.parametrize("factor", [-100.0, 0.0, 1.1, math.nan])
def test_a_wrong_covariance_stops_the_export(
    fused: FusedPose, model: onnx.ModelProto, crops: Crops, factor: float
) -> None:
    drift = measure(fused, scaled_covariance(model, factor), crops, Bounds())
    assert drift.max_px <= 0.05
    with pytest.raises(ExportError, match="covariance"):
        judge(drift, Bounds())


def test_a_graph_without_covariance_is_compared_in_the_rest(
    fused: FusedPose, model: onnx.ModelProto, crops: Crops
) -> None:
    kept = [output for output in model.graph.output if output.name != "covariance"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    drift = measure(fused, model, crops, Bounds())
    assert drift.spread_max is None
    judge(drift, Bounds())


def test_the_gap_of_two_covariances() -> None:
    one = np.array([[4.0, 1.0], [1.0, 9.0]])
    wider, turned, broken = one * 1.21, one * [[1, -1], [-1, 1]], one * [[1, 1], [1, 0]]
    gap = spread_gap(np.stack([one] * 4), np.stack([one, wider, turned, broken]))
    np.testing.assert_allclose(gap, [0, 0.21, 2 / 6, np.inf])


def test_further_keypoints_take_their_covariances_along() -> None:
    assert Bounds().max_spread == 0.05
    assert Bounds(max_px=0.5).max_spread == 0.5


def test_another_runtime_with_a_wrong_covariance(
    model: onnx.ModelProto, crops: Crops, tmp_path: Path
) -> None:
    onnx.save_model(model, tmp_path / "right.onnx")
    onnx.save_model(scaled_covariance(model, -100.0), tmp_path / "wrong.onnx")
    with (
        open_backend(tmp_path / "right.onnx", device="cpu") as right,
        open_backend(tmp_path / "wrong.onnx", device="cpu") as wrong,
    ):
        same, other = (compare_runtimes(right, b, crops[:5], 0.0) for b in (right, wrong))
    for bound in (Bound(), Bound("p99_px", 20.0, spread_median=1.0)):
        judge_agreement(same, bound)
        with pytest.raises(ExportError, match="a variance that is not positive"):
            judge_agreement(other, bound)
    with pytest.raises(ExportError, match=r"^the file is not its reference \(both on CPUExecution"):
        judge_agreement(other, Bound())
    assert same.spread_max == 0.0
