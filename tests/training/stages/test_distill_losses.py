"""Distillation losses against slow float64 loops, and their magnitudes against the method's."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import ModelSpec
from cfpose_training.config import DistillConfig, LabelConfig
from cfpose_training.data.people import People
from cfpose_training.losses import (
    decay,
    feature_loss,
    logit_loss,
    pose_l1,
    simcc_loss,
    soft_pose,
    structure_loss,
)
from cfpose_training.nets.decode import soft_argmax
from cfpose_training.stages.stage1 import limb_weights

LIMBS = ((0, 1), (1, 2), (0, 3))
BETA = DistillConfig().beta
BINS_XY = (384, 512)
SIZE_WH = (192, 256)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_feature_loss_is_eq_1() -> None:
    a, b = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    total = 0.0
    for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True):
        total += (x - y) ** 2
    assert feature_loss(a, b, "sum").item() == pytest.approx(total / 2, rel=1e-12)
    assert feature_loss(a, b, "mean").item() == pytest.approx(total / a.numel(), rel=1e-12)


def test_soft_pose_is_the_mean_bin_in_pixels() -> None:
    x, y = draw(2, 4, 9), draw(2, 4, 13, seed=1)
    pose = soft_pose((x, y), split_ratio=2.5, tau=1.7)
    for axis, logits in enumerate((x, y)):
        for b in range(2):
            for k in range(4):
                masses = [math.exp(1.7 * z) for z in logits[b, k].tolist()]
                mean = sum(i * mass for i, mass in enumerate(masses)) / sum(masses)
                assert pose[b, k, axis].item() == pytest.approx(mean / 2.5, rel=1e-12)


def test_pose_l1_sums_joints_and_axes_and_averages_crops() -> None:
    a, b = draw(3, 4, 2), draw(3, 4, 2, seed=1)
    pairs = zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
    assert pose_l1(a, b).item() == pytest.approx(sum(abs(x - y) for x, y in pairs) / 3, rel=1e-12)


@pytest.mark.parametrize("form", ["length", "vector"])
def test_structure_loss_is_the_second_term_of_eq_2(form: str) -> None:
    a, b = draw(3, 4, 2), draw(3, 4, 2, seed=1)
    weights = torch.tensor([0.5, 1.0, 1.5]).double()
    expected = 0.0
    for crop in range(3):
        for (i, j), weight in zip(LIMBS, weights.tolist(), strict=True):
            vectors = [(p[crop, i] - p[crop, j]).tolist() for p in (a, b)]
            if form == "vector":
                gap = sum(abs(u - v) for u, v in zip(*vectors, strict=True))
            else:
                lengths = [math.sqrt(dx * dx + dy * dy + 1e-6) for dx, dy in vectors]
                gap = abs(lengths[0] - lengths[1])
            expected += weight * gap
    loss = structure_loss(a, b, LIMBS, weights, form)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(expected / 3, rel=1e-12)


def test_limb_lengths_ignore_direction_and_vectors_do_not() -> None:
    pose = draw(1, 4, 2)
    turned = pose.flip(-1)  # mirrored about the diagonal: every length stays
    weights = torch.ones(3).double()
    assert structure_loss(pose, turned, LIMBS, weights).item() == pytest.approx(0, abs=1e-12)
    assert structure_loss(pose, turned, LIMBS, weights, "vector").item() > 0.1


def test_a_limb_of_no_length_has_a_finite_gradient() -> None:
    pose = torch.zeros(1, 4, 2, requires_grad=True)
    structure_loss(pose, torch.ones(1, 4, 2) * torch.arange(4.0)[:, None], LIMBS, torch.ones(3))
    loss = structure_loss(pose, draw(1, 4, 2).float(), LIMBS, torch.ones(3))
    loss.backward()
    assert pose.grad is not None
    assert pose.grad.isfinite().all()


def test_logit_loss_is_the_divergence_of_all_joints() -> None:
    students, teachers = (
        [draw(2, 3, bins, seed=seed + bins) for bins in (5, 7)] for seed in (0, 50)
    )
    total = 0.0
    for student, teacher in zip(students, teachers, strict=True):
        for s, t in zip(
            student.reshape(6, -1).tolist(), teacher.reshape(6, -1).tolist(), strict=True
        ):
            p, q = ([math.exp(z) for z in row] for row in (t, s))
            for mine, theirs in zip(p, q, strict=True):
                total += mine / sum(p) * math.log((mine / sum(p)) / (theirs / sum(q)))
    loss = logit_loss((students[0], students[1]), (teachers[0], teachers[1]))
    assert loss.item() == pytest.approx(total / 2, rel=1e-12)
    same = (students[0], students[1])
    assert logit_loss(same, same).item() == pytest.approx(0, abs=1e-12)


def test_decay_falls_from_1_to_1_over_the_epochs() -> None:
    assert [decay(epoch, 4) for epoch in (1, 2, 3, 4)] == [1.0, 0.75, 0.5, 0.25]
    assert decay(1, 210) == 1
    assert decay(210, 210) == pytest.approx(1 / 210)


# Weights of the limbs


def spec_and_people() -> tuple[ModelSpec, People]:
    """Three people whose limb e has lengths 10 + e, 20 + e and 30 + e pixels of the crop."""
    skeleton = dataclasses.replace(
        COCO_17,
        keypoints=("a", "b", "c", "d"),
        limbs=LIMBS,
        flip_pairs=(),
        oks_sigmas=(0.1, 0.2, 0.3, 0.4),
    )
    spec = ModelSpec(name="tiny", skeleton=skeleton, size_wh=(48, 64), box_scale=1.0)
    joints = np.zeros((3, 4, 3))
    joints[..., 2] = 2
    for person, length in enumerate((10.0, 20.0, 30.0)):
        joints[person, 1, 0] = length
        joints[person, 2, :2] = length, length + 1
        joints[person, 3, 1] = length + 2
    joints[2, 3, 2] = 0  # the third person's last limb is not labelled
    box = np.array([[0.0, 0.0, 24.0, 32.0]] * 3)  # half the crop: lengths double
    ones = np.ones(3)
    people = People(
        (), (), np.zeros(3, np.intp), box, joints, ones, ones, np.ones(3, np.intp), np.ones((3, 17))
    )
    return spec, people


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("uniform", [1, 1, 1]),
        ("inv_sigma", [1 / 0.3, 1 / 0.5, 1 / 0.5]),
        ("inv_length", [1 / 40, 1 / 42, 1 / 34]),
        ("inv_var", [1 / 66, 1 / 66, 1 / 25]),
    ],
)
def test_limb_weights_have_mean_1(kind: str, raw: list[float]) -> None:
    spec, people = spec_and_people()
    if kind == "inv_var":  # population variance of 20, 40, 60 and of 24, 44
        raw = [3 / 800, 3 / 800, 1 / 100]
    weights = limb_weights(kind, spec, people)  # type: ignore[arg-type]
    assert weights == pytest.approx(np.array(raw) * 3 / sum(raw), rel=1e-9)
    assert weights.mean() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["inv_length", "inv_var"])
def test_a_limb_that_nobody_shows_has_no_weight(kind: str) -> None:
    spec, people = spec_and_people()
    people.joints[:, 3, 2] = 0
    with pytest.raises(TrainingError, match=r"\(0, 3\).*'uniform'"):
        limb_weights(kind, spec, people)  # type: ignore[arg-type]


# The magnitudes of METHOD §5: label-smoothed KL, epsilon 0.1, two bins a pixel, 192 x 256


def positions(count: int, inset: float) -> Tensor:
    """(1, count, 2) joints, evenly over the middle of the crop."""
    place = torch.linspace(inset, 1 - inset, count).double()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    axes = [place * (SIZE_WH[0] - 1), place[order] * (SIZE_WH[1] - 1)]
    return (torch.stack(axes, dim=-1) * 2).round().unsqueeze(0) / 2


def late_logits(xy: Tensor, sigma_bins: float) -> tuple[Tensor, Tensor]:
    """A trained network's: a bump on the joint, and epsilon spread over the axis."""
    logits = []
    for axis, bins in enumerate(BINS_XY):
        distance = torch.arange(bins).double() - xy[..., axis, None] * 2
        bump = torch.softmax(-(distance**2) / (2 * sigma_bins**2), dim=-1)
        logits.append((0.9 * bump + 0.1 / bins).log())
    return logits[0], logits[1]


def gradient_norms(loss: Tensor, logits: tuple[Tensor, Tensor]) -> list[float]:
    """L1 norm for one joint, along x and along y."""
    gradients = torch.autograd.grad(loss, logits)
    return [g.abs().sum().item() / g.shape[1] for g in gradients]


def test_magnitudes_at_the_start() -> None:
    xy = positions(11, 0.1)
    logits = tuple(torch.zeros(1, 11, bins).double().requires_grad_() for bins in BINS_XY)
    pair = (logits[0], logits[1])
    kl = simcc_loss(pair, xy, torch.ones(1, 11).double(), 2.0, LabelConfig())
    assert kl.item() / 11 == pytest.approx(10.3, abs=0.05)
    assert kl.item() == pytest.approx(114, abs=1)
    assert gradient_norms(kl, pair) == pytest.approx([1.8, 1.8], abs=0.01)
    # all 17 joints against the middle of the crop, where an untrained soft-argmax points
    target = positions(17, 0.1)
    middle = soft_pose(tuple(torch.zeros(1, 17, bins).double() for bins in BINS_XY), 2.0, 2.0)
    distance = pose_l1(middle, target).item()
    assert 1200 < distance < 1700
    assert 120 < BETA * distance < 170
    assert BETA * distance / 34 == pytest.approx(4.5, abs=0.6)  # pixels, mean of 34 coordinates
    unit = torch.tensor(SIZE_WH)
    assert BETA * pose_l1(middle / unit, target / unit).item() / 34 == pytest.approx(0.02, abs=5e-3)


@pytest.mark.parametrize("sigma_bins", [2.0, 3.0, 4.0, 5.0])
def test_magnitudes_late(sigma_bins: float) -> None:
    xy = positions(101, 0.06)
    logits_x, logits_y = (z.requires_grad_() for z in late_logits(xy, sigma_bins))
    pair = (logits_x, logits_y)
    kl = simcc_loss(pair, xy, torch.ones(1, 101).double(), 2.0, LabelConfig())
    assert 2.8 < kl.item() / 101 < 4.5
    assert all(1.4 < norm < 1.7 for norm in gradient_norms(kl, pair))
    # the gradient of L1 has the same size however far the target is; along x, with tau 1
    outside = torch.full_like(xy, 1000.0)
    scales = {"pixels": 1.0, "bins": 2.0, "unit": 1 / SIZE_WH[0]}
    norms = {
        name: gradient_norms(BETA * scale * pose_l1(soft_pose(pair, 2.0, 1.0), outside), pair)[0]
        for name, scale in scales.items()
    }
    assert norms["pixels"] == pytest.approx(0.97, abs=0.05)
    assert norms["bins"] == pytest.approx(1.95, abs=0.1)
    assert norms["unit"] == pytest.approx(0.005, abs=5e-4)
    # the default tau 2 looks at the bump alone
    bump_only = gradient_norms(BETA * pose_l1(soft_pose(pair, 2.0, 2.0), outside), pair)[0]
    assert 0.1 < bump_only < 0.35
    # 17 joints, each 1 to 1.5 px off on each axis
    assert 3 < BETA * pose_l1(xy[:, :17], xy[:, :17] + 1.25).item() < 5


def test_tau_2_is_nearly_unbiased_and_tau_1_is_not() -> None:
    for pixel, pulled in ((10, 18.6), (185, 176.1)):
        target = torch.full((384,), 0.1 / 383).double()
        target[2 * pixel] = 0.9
        logits = target.log().reshape(1, 1, -1)
        assert soft_argmax(logits, 2.0, 1.0).item() == pytest.approx(pulled, abs=0.06)
        assert soft_argmax(logits, 2.0, 2.0).item() == pytest.approx(pixel, abs=0.03)


@pytest.mark.parametrize("error", [0.05, 0.3])
def test_alpha_means_something_as_a_sum_only(error: float) -> None:
    teacher = torch.zeros(1, 48, 64, 48)
    student = torch.full_like(teacher, math.sqrt(error))
    alpha = DistillConfig().alpha
    assert 0.36 < alpha * feature_loss(student, teacher, "sum").item() < 2.22
    assert alpha * feature_loss(student, teacher, "mean").item() < 1.6e-5


def test_joint_weights_count_joints_and_the_lighter_end_of_a_limb() -> None:
    student = torch.zeros(1, 3, 2)
    student[0, :, 0] = torch.tensor([0.0, 3.0, 7.0])
    teacher = torch.zeros(1, 3, 2)
    teacher[0, :, 0] = torch.tensor([1.0, 2.0, 9.0])
    joints = torch.tensor([[0.5, 2.0, 0.25]])
    assert pose_l1(student, teacher, joints).item() == pytest.approx(0.5 * 1 + 2 * 1 + 0.25 * 2)
    limbs, weights = ((0, 1), (1, 2)), torch.tensor([1.0, 10.0])
    # lengths 3 and 4 against 1 and 7
    assert structure_loss(
        student, teacher, limbs, weights, joint_weights=joints
    ).item() == pytest.approx(1 * 0.5 * 2 + 10 * 0.25 * 3, rel=1e-5)
    ones = torch.ones(1, 3)
    assert torch.equal(pose_l1(student, teacher, ones), pose_l1(student, teacher))
    assert torch.equal(
        structure_loss(student, teacher, limbs, weights, "vector", ones),
        structure_loss(student, teacher, limbs, weights, "vector"),
    )
