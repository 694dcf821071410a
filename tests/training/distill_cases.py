"""Tiny networks, batches and steps for the tests of the stages."""

from __future__ import annotations

import torch
from torch import Tensor

from cfpose_training.config import DistillConfig, Recipe
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.igp_gcn import IGPGCN, IGPGCNConfig
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet
from cfpose_training.pose.train import pose_spec
from cfpose_training.stages.base import Stage
from cfpose_training.stages.stage1 import LabelStage

WIDE = HRNetConfig(width=8, stem=4, bottlenecks=1, modules=(1, 1, 1), blocks=1)
EVERYTHING = DistillConfig(kd_fea=True, kd_l1=True, kd_cst=True, kd_logit=True)


def batch(recipe: Recipe, seed: int = 1, size: int = 4) -> dict[str, Tensor]:
    """Noise, with a label for every joint anywhere in the crop."""
    generator = torch.Generator().manual_seed(seed)
    width, height = recipe.pose.size_wh
    return {
        "crops": torch.randint(0, 256, (size, height, width, 3), generator=generator).byte(),
        "xy": torch.rand(size, 17, 2, generator=generator) * torch.tensor([width, height]),
        "weight": torch.ones(size, 17),
    }


def pose_net(recipe: Recipe, config: HRNetConfig, seed: int) -> PoseNet:
    """A fresh network of the recipe's spec."""
    torch.manual_seed(seed)
    network = PoseNet(config, pose_spec(recipe))
    network.head.init_as_marginals()
    return network


def taught(recipe: Recipe, data: dict[str, Tensor]) -> PoseNet:
    """A teacher that has learnt the batch; its batch statistics are its running ones."""
    spec = pose_spec(recipe)
    teacher = pose_net(recipe, WIDE, 1)
    for layer in teacher.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.5
    stage = LabelStage(teacher, spec, recipe.labels).train()
    optimiser = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    losses_of(stage, optimiser, data, steps=60)
    return teacher


def refined_network(recipe: Recipe, **options: object) -> RefinedPoseNet:
    """A fresh student with a small refiner."""
    pose = pose_net(recipe, recipe.pose.hrnet, 0)
    spec = pose_spec(recipe)
    config = IGPGCNConfig(
        size_wh=spec.size_wh,
        tap_channels=pose.backbone.tap_channels,
        node_channels=8,
        joint_channels=(8, 8, 8),
        **options,  # type: ignore[arg-type]
    )
    return RefinedPoseNet(pose, IGPGCN(config, spec.skeleton), spec)


def losses_of(
    stage: Stage, optimiser: torch.optim.Optimizer, data: dict[str, Tensor], *, steps: int
) -> list[float]:
    """The stage's loss before each of so many steps on one batch."""
    losses = []
    for _ in range(steps):
        loss = stage(data)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses
