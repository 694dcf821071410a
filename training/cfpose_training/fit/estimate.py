"""How long a recipe takes on this machine, and how much memory it takes on a GPU."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cfpose_training.config import OptimConfig, Recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.data.photo_cache import photo_folder
from cfpose_training.fit.plan import measure_pace
from cfpose_training.nets.pose_net import PoseNet
from cfpose_training.pose.train import pose_spec
from cfpose_training.run.loop import RunOptions

FLOAT_BYTES = 4
KEPT = 2  # a map and its gradient
OF_A_WEIGHT = 5  # copies: the weight, its gradient, AdamW's two moments, the average


class NetworkCost(NamedTuple):
    """Of a recipe's network, one crop: multiply-adds, parameters, values of its maps."""

    macs: int
    params: int
    maps: int


def network_cost(recipe: Recipe) -> NetworkCost:
    """Count the network that `recipe.pose` describes.

    Multiply-adds are those of convolutions and linear layers, maps the outputs of all layers.
    """
    macs = maps = 0

    def count(module: nn.Module, __: object, output: object) -> None:
        nonlocal macs, maps
        if isinstance(output, Tensor):
            maps += output.numel()
            if isinstance(module, nn.Conv2d | nn.Linear):
                macs += output.numel() * module.weight[0].numel()

    # on `meta` nothing is computed; the marginal head cannot run there
    device = torch.device("meta" if recipe.pose.head == "simcc" else "cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad(), device:
        network = PoseNet(recipe.pose.backbone, pose_spec(recipe), recipe.pose.head).eval()
        for module in network.modules():
            if not list(module.children()):
                module.register_forward_hook(count)
        width, height = recipe.pose.size_wh
        network(torch.zeros(1, 3, height, width))
    params = sum(parameter.numel() for parameter in network.parameters())
    return NetworkCost(macs, params, maps)


def training_bytes(cost: NetworkCost, optim: OptimConfig) -> int:
    """About the memory of a training step: maps of a batch and their gradients, and the weights.

    Counted on one crop; what the runtime itself takes is not in it.
    """
    maps = optim.batch_size * cost.maps
    return FLOAT_BYTES * (KEPT * maps + OF_A_WEIGHT * cost.params)


def estimate_text(recipe: Recipe, file: Path) -> str:
    """A line on the minutes here, measured on a few batches, and one on a GPU's memory."""
    root = file.parent / recipe.fit.data_root
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(Path(folder))
        pace = measure_pace(recipe, DataOptions(root, photo_folder(root)), options)
    minutes = pace.minutes(recipe.stage1.epochs)
    gigabytes = training_bytes(network_cost(recipe), recipe.stage1) / 2**30
    return (
        f"about {minutes:.0f} minutes on this machine ({pace.device}): {recipe.stage1.epochs} "
        f"epochs of {pace.steps} steps, {pace.step_s:.1f} s each; fewer with fit --max-minutes\n"
        f"about {gigabytes:.1f} GiB of memory on a GPU, beside what its runtime takes"
    )
