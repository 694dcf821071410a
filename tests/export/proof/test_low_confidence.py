"""A refiner that replaces weak joints alone does so in the graph too."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import onnxruntime
import torch

from cfpose_export.graph.trace import build_pose
from cfpose_training.nets.fused import FusedPose


def test_the_graph_leaves_confident_joints_alone(fused: FusedPose) -> None:
    width, height = fused.spec.size_wh
    crops = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    before = fused.run(torch.from_numpy(crops))
    slope, intercept = fused.spec.calibration
    raw = torch.sigmoid((torch.logit(before.confidence.double()) - intercept) / slope)
    ordered = raw.flatten().sort().values
    middle = len(ordered) // 2
    threshold = (ordered[middle - 1] + ordered[middle]).item() / 2
    weak_only = copy.deepcopy(fused)
    assert weak_only.refiner is not None
    weak_only.refiner.config = dataclasses.replace(
        weak_only.refiner.config, refine="low_conf", refine_below=threshold
    )
    session = onnxruntime.InferenceSession(
        build_pose(weak_only).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    keypoints, coarse = session.run(["keypoints", "coarse"], {"crops": crops})
    weak = (raw < threshold).numpy()
    assert weak.sum() == middle
    np.testing.assert_array_equal(keypoints[~weak], coarse[~weak])
    np.testing.assert_allclose(keypoints[weak], before.keypoints.numpy()[weak], atol=1e-2)
    assert abs(keypoints[weak] - coarse[weak]).max() > 1
