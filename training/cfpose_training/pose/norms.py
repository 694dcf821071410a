"""Restore the batch norms of a network that was read from an exported graph.

An exported graph has its norms folded in, so a network read from one has norms that only add a
bias. It computes what the graph does; but in training its norms divide by the statistics of a
batch, and nothing multiplies by them again. Here the norms get the statistics of real crops, and
weights that undo them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cfpose_sdk.spec import ModelSpec
from cfpose_training.checkpoints.from_graph import only_adds
from cfpose_training.data.crop_dataset import plain_crops
from cfpose_training.data.people import People
from cfpose_training.data.photo_cache import PhotoCache
from cfpose_training.nets.pose_net import Normalise, PoseNet

CROWD = 512  # people that are looked at, spread over all of them
BATCH = 32


def restore_norms(network: PoseNet, people: People, cache: PhotoCache, spec: ModelSpec) -> int:
    """Give norms that only add the statistics of what they see; how many there were.

    In eval mode the network computes what it did before, to float32 rounding.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and only_adds(m)]
    if not norms:
        return 0
    seen = [_Moments(norm.num_features) for norm in norms]
    handles = [_watch(norm, moments) for norm, moments in zip(norms, seen, strict=True)]
    was_training = network.training
    network.eval()
    normalise = Normalise(spec.mean_rgb, spec.std_rgb)
    chosen = range(0, len(people), max(1, len(people) // CROWD))
    with torch.no_grad():
        for start in range(0, len(chosen), BATCH):
            crops, _ = plain_crops(people, cache, spec, chosen[start : start + BATCH])
            network(normalise(torch.from_numpy(crops)))
    network.train(was_training)
    for handle, norm, moments in zip(handles, norms, seen, strict=True):
        handle.remove()
        _undo(norm, *moments.mean_and_variance())
    return len(norms)


class _Moments:
    """Running sums of (B, C, h, w) maps, a channel each, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sum, self.squares = torch.zeros(2, channels, dtype=torch.float64)

    def add(self, maps: Tensor) -> None:
        values = maps.double()
        self.count += values[:, 0].numel()
        self.sum += values.sum(dim=(0, 2, 3))
        self.squares += values.square().sum(dim=(0, 2, 3))

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        mean = self.sum / self.count
        return mean, (self.squares / self.count - mean.square()).clamp_min(0)


def _watch(norm: nn.BatchNorm2d, moments: _Moments) -> RemovableHandle:
    def look(_: nn.Module, inputs: tuple[Tensor]) -> None:
        moments.add(inputs[0])

    return norm.register_forward_pre_hook(look)


def _undo(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """These statistics, and the weight and bias that leave the input plus the old bias."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.add_(mean)
