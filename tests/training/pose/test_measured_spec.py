"""What a finished run writes into its spec, measured again from the artifact's own outputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from cfpose_sdk.crops import invert_transforms, transform_points
from cfpose_sdk.keypoints import calibrate, covariance, decode_simcc, expected_oks, widen
from cfpose_sdk.spec import Evidence, ModelSpec
from cfpose_training.config import Recipe, load_recipe
from cfpose_training.data.crop_dataset import DataOptions, plain_crops
from cfpose_training.nets.igp_gcn import IGPGCN, IGPGCNConfig
from cfpose_training.nets.pose_net import Normalise, PoseNet, RefinedPoseNet
from cfpose_training.pose.calibration import measured_spec
from cfpose_training.pose.train import deployed_spec, development_set, pose_spec


def tiny_network(recipe: Recipe, spec: ModelSpec) -> RefinedPoseNet:
    """The recipe's student with a small refiner, untrained."""
    torch.manual_seed(0)
    pose = PoseNet(recipe.pose.hrnet, spec)
    refiner = IGPGCNConfig(
        spec.size_wh, pose.backbone.tap_channels, node_channels=8, joint_channels=(8, 8, 8)
    )
    return RefinedPoseNet(pose, IGPGCN(refiner, spec.skeleton), spec).eval()


@pytest.mark.parametrize("evidence", ["peak", "spread"])
def test_the_covariance_scale_covers_the_development_joints(
    evidence: Evidence, tiny_recipe: Path, tiny_root: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(tiny_recipe)
    window = 1.5 if evidence == "spread" else 0.0
    pose_config = dataclasses.replace(
        recipe.pose,
        evidence=evidence,
        decode="subbin",
        oks_window=window,
        spread_temperature=0.7 if evidence == "spread" else 1.0,
        spread_isotropy=0.5 if evidence == "spread" else 0.0,
    )
    recipe = dataclasses.replace(recipe, pose=pose_config)
    # stage 1's epochs are compared by the plain score and the narrow window
    assert (pose_spec(recipe).evidence, pose_spec(recipe).windows) == ("peak", ())
    assert pose_spec(recipe).spread_temperature == 1
    spec = deployed_spec(recipe)
    assert (spec.evidence, spec.oks_window) == (evidence, window)
    network = tiny_network(recipe, spec)
    pose = network.pose
    dev = development_set(recipe, spec, DataOptions(tiny_root, tmp_path / "cache"))
    assert dev is not None
    measured = measured_spec(network, spec, dev)

    crops, transforms = plain_crops(dev.people, dev.cache, spec, range(len(dev.people)))
    with torch.no_grad():
        images = Normalise()(torch.from_numpy(crops))
        x_logits, y_logits, _ = pose(images)
        xy = network(images)[0].double().numpy()
    moments = covariance(
        x_logits.numpy(), y_logits.numpy(), xy, spec.split_ratio,
        temperature=spec.spread_temperature, isotropy=spec.spread_isotropy,
    )  # fmt: skip
    _, score = decode_simcc(x_logits.numpy(), y_logits.numpy(), spec.split_ratio, spec.decode)
    if evidence == "spread":
        score = expected_oks(xy, moments, spec.skeleton.oks_sigmas)
    assert np.allclose(dev.predict(network).score, score, atol=1e-4)
    confidence = calibrate(score, measured.calibration)
    spread = widen(moments, confidence, measured.covariance_odds_power) * measured.covariance_scale
    truth = transform_points(transforms, dev.people.joints[..., :2])
    labelled = dev.people.joints[..., 2] > 0
    # without rotation a crop is the photo scaled, which leaves Mahalanobis distances as they are
    error = (xy - truth)[labelled][:, :, None]
    squared = (error * np.linalg.solve(spread[labelled], error)).sum(axis=(1, 2))
    assert labelled.sum() >= 10
    one_joint = 1.01 / labelled.sum()  # the one on the edge: the spec's scale is rounded
    for sigmas in (1, 2):
        share = (squared <= sigmas**2).mean()
        assert measured.metrics[f"dev_within_{sigmas}_sigma"] == pytest.approx(share, abs=one_joint)

    def worst_gap(factor: float) -> float:
        shares = [(squared <= n**2 * factor).mean() - 1 + np.exp(-(n**2) / 2) for n in (1, 2)]
        return float(np.abs(shares).max())

    assert all(worst_gap(1) <= worst_gap(f) + one_joint for f in (0.5, 0.8, 0.9, 1.1, 1.25, 2))
    found = transform_points(invert_transforms(transforms), xy)
    assert np.allclose(dev.predict(network).xy, found, atol=1e-3)
