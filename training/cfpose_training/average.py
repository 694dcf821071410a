"""Average the weights of several trained networks into one checkpoint.

The mean of runs that start from the same weights, or from one another, is often better than each of
them ("Model soups", Wortsman et al., ICML 2022), and it runs at the cost of one network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cfpose_sdk.errors import TrainingError
from cfpose_training.checkpoints.files import load_finder, load_pose, save_pose
from cfpose_training.checkpoints.starts import inherited
from cfpose_training.config import Recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.finder.train import FINDER_FILE, FinderDevelopmentSet, write_finder
from cfpose_training.nets.pose_net import RefinedPoseNet
from cfpose_training.pose.train import STUDENT_FILE, development_set, pose_spec


def average_students(
    recipe: Recipe, checkpoints: Sequence[Path], data: DataOptions, folder: Path
) -> Path:
    """The student whose weights are the mean of `checkpoints`, measured on the held-out photos.

    Returns the checkpoint in `folder`, for stage 2. Raises TrainingError when there are fewer than
    two checkpoints, one has a refiner, they are not all of the recipe's network, or the file is
    there already.
    """
    checkpoint = folder / STUDENT_FILE
    check_average(checkpoints, checkpoint)
    spec, networks, specs = pose_spec(recipe), [], []
    for path in checkpoints:
        network, own_spec = load_pose(path)
        if isinstance(network, RefinedPoseNet):
            raise TrainingError(f"{path} has a refiner; give checkpoints of stage 1")
        same = dataclasses.replace(own_spec, name=spec.name, metrics={}, started_from=()) == spec
        if not same or network.backbone.config != recipe.pose.backbone:
            raise TrainingError(f"{path} is not of the network in the recipe's [pose]")
        networks.append(network)
        specs.append(own_spec)
    mean = networks[0]
    mean.load_state_dict(mean_weights(networks))
    dev = development_set(recipe, spec, data)
    metrics = {} if dev is None else {"dev_AP": round(dev.accuracy(dev.predict(mean)).AP, 4)}
    started = inherited(specs, recipe.started_from)
    save_pose(checkpoint, mean, dataclasses.replace(spec, metrics=metrics, started_from=started))
    return checkpoint


def average_finders(
    recipe: Recipe, checkpoints: Sequence[Path], data: DataOptions, folder: Path
) -> Path:
    """The finder whose weights are the mean of `checkpoints`, measured on the held-out photos.

    Returns the checkpoint in `folder`. Raises TrainingError when the recipe has no finder, there
    are fewer than two checkpoints, they are of different networks, or the file is there already.
    """
    config = recipe.finder
    if config is None:
        raise TrainingError("the recipe has no [finder] table")
    checkpoint = folder / FINDER_FILE
    check_average(checkpoints, checkpoint)
    networks, specs = zip(*(load_finder(path) for path in checkpoints), strict=True)
    for path, network in zip(checkpoints, networks, strict=True):
        if network.config != config.net:
            raise TrainingError(f"{path} is not of the network in the recipe's finder.net")
    mean = networks[0]
    mean.load_state_dict(mean_weights(networks))
    figures = FinderDevelopmentSet(config, data).figures(mean)
    write_finder(checkpoint, mean, config, figures, inherited(specs, config.started_from))
    return checkpoint


def mean_weights(networks: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The state of networks of one shape, every weight and batch-norm statistic their mean."""
    states = [network.state_dict() for network in networks]
    return {
        key: torch.stack([state[key] for state in states]).mean(dim=0)
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }


def check_average(checkpoints: Sequence[Path], target: Path) -> None:
    """Raise TrainingError for fewer than two checkpoints, or a target that is there already."""
    if len(checkpoints) < 2:
        raise TrainingError(f"a mean is of two checkpoints or more, got {len(checkpoints)}")
    if target.exists():
        raise TrainingError(f"{target} is there already; give another --out, or move it away")
