"""Tiny networks and batches for the tests of distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from cfpose_training.config import DistillConfig, Recipe
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.pose_net import PoseNet
from cfpose_training.pose_training import pose_spec

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
