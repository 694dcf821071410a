"""SimCC targets and losses against the reference's own values, and against slow formulas."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cfpose_sdk.oks import joint_oks, oks_variance
from cfpose_sdk.skeleton import COCO_17
from cfpose_training.config import LabelConfig
from cfpose_training.data.targets import (
    gaussian_target,
    label_weights,
    smoothed_target,
    softmax_gaussian_target,
)
from cfpose_training.losses import refinement_loss, refinement_oks_loss, simcc_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "simcc_losses.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.mark.parametrize(
    ("kind", "name", "positions"),
    [
        ("smoothed", "NMTCritierion", "target_bins"),
        ("gaussian_mean", "KLDiscretLoss_sigma4", "gaussian_centres_px"),
    ],
)
def test_loss_and_gradient_equal_the_reference(
    golden: dict[str, torch.Tensor], kind: str, name: str, positions: str
) -> None:
    x, y = golden["logits_x"].clone(), golden["logits_y"].clone()
    x.requires_grad_()
    y.requires_grad_()
    xy = golden[positions].double() / (2 if positions == "target_bins" else 1)
    weight = golden["target_weight"].squeeze(-1)
    loss = simcc_loss((x, y), xy, weight, 2.0, LabelConfig(kind=kind))  # type: ignore[arg-type]
    loss.backward()
    assert loss.item() == pytest.approx(golden[name].item(), rel=1e-9)
    for axis, logits in (("x", x), ("y", y)):
        key = f"{name}_grad_l1_{axis}"
        if key in golden:
            assert logits.grad is not None
            assert logits.grad.abs().sum().item() == pytest.approx(golden[key].item(), rel=1e-9)


def test_normalised_gaussian_loss_is_the_mean_divergence_of_labelled_joints() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = [torch.randn(2, 3, bins, generator=generator).double() for bins in (20, 30)]
    xy = torch.tensor([[[4.0, 9.0], [0.3, 2.0], [8.0, 8.0]]] * 2).double()
    weight = torch.tensor([[1.0, 0.0, 1.0], [0.5, 0.0, 0.0]]).double()
    expected = total = 0.0
    for b in range(2):
        for k in range(3):
            for axis in range(2):
                z = logits[axis][b, k].tolist()
                centre = xy[b, k, axis].item() * 2
                bump = [math.exp(-((i - centre) ** 2) / (2 * 3.0**2)) for i in range(len(z))]
                log_sum = math.log(sum(math.exp(v) for v in z))
                for value, mass in zip(z, bump, strict=True):
                    t = mass / sum(bump)
                    expected += weight[b, k].item() * t * (math.log(t) - (value - log_sum))
            total += weight[b, k].item()
    loss = simcc_loss(
        (logits[0], logits[1]), xy, weight, 2.0, LabelConfig(kind="gaussian", sigma_bins=3.0)
    )
    assert loss.item() == pytest.approx(expected / total, rel=1e-9)


@pytest.mark.parametrize("kind", ["smoothed", "gaussian_mean", "gaussian", "gaussian_softmax"])
def test_a_batch_without_labels_costs_nothing(kind: str) -> None:
    x = torch.randn(2, 4, 20, requires_grad=True)
    y = torch.randn(2, 4, 30, requires_grad=True)
    config = LabelConfig(kind=kind)  # type: ignore[arg-type]
    loss = simcc_loss((x, y), torch.full((2, 4, 2), 5.0), torch.zeros(2, 4), 2.0, config)
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None
    assert not x.grad.any()


def test_targets_are_distributions_around_the_joint() -> None:
    position = torch.tensor([[3.2, 0.0]])
    for target in (
        smoothed_target(position, 40, 2.0, 0.1),
        gaussian_target(position, 40, 2.0, 4.0, normalise=True),
    ):
        torch.testing.assert_close(target.sum(-1), torch.ones(1, 2))
        assert target.argmax(-1).tolist() == [[6, 0]]
    assert smoothed_target(position, 40, 2.0, 0.1)[0, 0, 6].item() == pytest.approx(0.9)


def test_label_weights_follow_the_crop() -> None:
    # bins 0..19 and 0..29 at two bins a pixel
    xy = torch.tensor([[[0.0, 0.0], [-0.2, 3.0], [-0.3, 3.0], [9.7, 3.0], [9.8, 3.0], [5.0, 99.0]]])
    smoothed = label_weights(xy, (20, 30), 2.0, LabelConfig())
    assert smoothed.tolist() == [[1, 1, 0, 1, 0, 0]]
    # a Gaussian of sigma 4 bins still touches the crop 6 px outside, and not 6.1 px
    xy = torch.tensor([[[-6.0, 3.0], [-6.1, 3.0], [15.9, 3.0], [16.0, 3.0]]])
    gaussian = label_weights(xy, (20, 30), 2.0, LabelConfig(kind="gaussian"))
    assert gaussian.tolist() == [[1, 0, 1, 0]]


def test_refinement_loss_is_the_weighted_mean_distance() -> None:
    target = torch.zeros(1, 3, 2)
    poses = tuple(torch.full((1, 3, 2), value) for value in (0.1, 0.2, 0.4))
    weight = torch.tensor([[1.0, 1.0, 0.0]])
    loss = refinement_loss(poses, target, weight, (0.3, 0.5, 1.0))
    assert loss.item() == pytest.approx(0.3 * 0.1 + 0.5 * 0.2 + 1.0 * 0.4)


def test_refinement_may_be_taught_by_oks() -> None:
    """By the SDK's own OKS, of people whose size is known."""
    rng = np.random.default_rng(3)
    target = rng.uniform(0, 190, (4, 17, 2))
    poses = [target + rng.normal(0, spread, target.shape) for spread in (9.0, 6.0, 3.0)]
    areas, weight = rng.uniform(900, 9000, 4), rng.integers(0, 2, (4, 17)).astype(float)
    sigmas = np.array(COCO_17.oks_sigmas)
    expected = sum(
        factor * ((1 - joint_oks(pose, target, areas, sigmas)) * weight).sum() / weight.sum()
        for factor, pose in zip((0.3, 0.5, 1.0), poses, strict=True)
    )
    reach = torch.tensor(np.sqrt(oks_variance(areas, sigmas)))
    loss = refinement_oks_loss(
        [torch.tensor(pose) for pose in poses], torch.tensor(target), torch.tensor(weight), reach,
        (0.3, 0.5, 1.0),
    )  # fmt: skip
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    nobody = torch.zeros(4, 17)
    there = torch.tensor(target)
    assert refinement_oks_loss([there] * 3, there, nobody, reach, (0.3, 0.5, 1.0)) == 0


def test_softmax_labels_are_rtmposes_with_a_deviation_for_each_axis() -> None:
    """softmax(10 exp(-d² / 2σ²)) written out in plain Python; the logits come multiplied by 10."""
    generator = torch.Generator().manual_seed(5)
    raw = [torch.randn(1, 2, bins, generator=generator).double() for bins in (20, 30)]
    xy = torch.tensor([[[4.3, 9.0], [8.0, 2.6]]]).double()
    config = LabelConfig(kind="gaussian_softmax", sigma_bins=(2.0, 3.5), softmax_beta=10.0)
    expected = 0.0
    for axis, sigma in enumerate((2.0, 3.5)):
        for k in range(2):
            z = [10 * v for v in raw[axis][0, k].tolist()]
            centre = 2 * xy[0, k, axis].item()
            lifted = [
                math.exp(10 * math.exp(-((i - centre) ** 2) / (2 * sigma**2)))
                for i in range(len(z))
            ]
            log_sum = math.log(sum(math.exp(v) for v in z))
            for value, mass in zip(z, lifted, strict=True):
                share = mass / sum(lifted)
                expected += share * (math.log(share) - (value - log_sum))
    loss = simcc_loss((10 * raw[0], 10 * raw[1]), xy, torch.ones(1, 2).double(), 2.0, config)
    assert loss.item() == pytest.approx(expected / 2, rel=1e-9)


def test_softmax_labels_leave_little_of_themselves_far_away() -> None:
    """What improved-coco.toml says of its labels: 0.4 % beyond three deviations, of 384 bins."""
    target = softmax_gaussian_target(torch.tensor([[10.0]]).double(), 384, 2.0, 4.9, 10.0)
    far = (torch.arange(384) - 20).abs() > 3 * 4.9
    assert target.sum().item() == pytest.approx(1)
    assert target.argmax().item() == 20
    assert target[..., far].sum().item() == pytest.approx(0.004, abs=0.0005)


def test_two_deviations_reach_as_far_as_each_says() -> None:
    config = LabelConfig(kind="gaussian", sigma_bins=(2.0, 4.0))
    xy = torch.tensor([[[-3.0, 5.0], [-3.1, 5.0], [5.0, -6.0], [5.0, -6.1]]])
    assert label_weights(xy, (20, 30), 2.0, config).tolist() == [[1, 0, 1, 0]]
    logits = torch.zeros(1, 1, 20).double(), torch.zeros(1, 1, 30).double()
    at = torch.full((1, 1, 2), 5.0).double()
    one = torch.ones(1, 1).double()
    both = simcc_loss(logits, at, one, 2.0, config).item()
    apart = [
        simcc_loss(logits, at, one, 2.0, LabelConfig(kind="gaussian", sigma_bins=s)).item()
        for s in (2.0, 4.0)
    ]
    assert min(apart) < both < max(apart)
