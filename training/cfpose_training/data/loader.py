"""Batches of an epoch: which samples, in which order, and for which process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from cfpose_sdk.errors import TrainingError
from cfpose_training.config import OptimConfig
from cfpose_training.data.crop_dataset import Batch


class Shard(NamedTuple):
    """One process's share of every batch."""

    rank: int = 0
    world: int = 1


# (epoch, start, shard) → the shard's part of that epoch's batches, from batch `start` on
Batches = Callable[[int, int, Shard], Iterable[Batch]]


class EpochSampler(Sampler[tuple[int, int, int]]):
    """Addresses (epoch, item, visit): a fixed permutation for each (seed, epoch), from `start` on.

    `repeat` (N,) says how often an epoch visits each item. A last part that is no whole `multiple`
    is left out, and of the rest a shard takes every world-th address.
    """

    def __init__(
        self,
        repeat: NDArray[np.intp],
        seed: int,
        epoch: int,
        start: int = 0,
        *,
        multiple: int = 1,
        shard: Shard = Shard(),  # noqa: B008 - immutable
    ) -> None:
        visits = [
            (epoch, item, visit) for item, count in enumerate(repeat) for visit in range(count)
        ]
        order = np.random.default_rng((seed, epoch)).permutation(len(visits))
        whole = len(visits) // multiple * multiple
        self._visits = [visits[i] for i in order[start + shard.rank : whole : shard.world]]

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return iter(self._visits)

    def __len__(self) -> int:
        return len(self._visits)


def batches_per_epoch(repeat: NDArray[np.intp], optim: OptimConfig) -> int:
    """Whole batches in an epoch. Raises TrainingError when there is not even one."""
    visits = int(repeat.sum())
    if visits < optim.batch_size:
        raise TrainingError(f"batch_size {optim.batch_size} exceeds the epoch's {visits} samples")
    return visits // optim.batch_size


def epoch_batches(
    dataset: Dataset[Batch],
    repeat: NDArray[np.intp],
    optim: OptimConfig,
    *,
    pin_memory: bool = False,
) -> Batches:
    """The batches of an epoch, without a last short one; `optim.batch_size` is that of all shards.

    `repeat` (N,) says how often an epoch visits each item of `dataset`. `pin_memory` is for a CUDA
    device, which copies from pinned memory without stopping. The batches do not depend on it, nor
    on `optim.workers`, and no random state is drawn from. Raises TrainingError when the batch size
    does not divide among the shards.
    """
    size = optim.batch_size

    def batches(epoch: int, start: int, shard: Shard) -> Iterable[Batch]:
        pieces = shard.world * optim.accumulate
        if size % pieces:
            raise TrainingError(
                f"batch_size {size} does not divide among {shard.world} processes"
                + (f", each in {optim.accumulate} parts" if optim.accumulate > 1 else "")
                + f"; take a multiple of {pieces}"
            )
        sampler = EpochSampler(repeat, optim.seed, epoch, start * size, multiple=size, shard=shard)
        return DataLoader(
            dataset,
            batch_size=size // shard.world,
            sampler=sampler,
            num_workers=optim.workers,
            pin_memory=pin_memory,
            worker_init_fn=_use_one_thread,
            # without one of its own a loader draws from torch's, whose state a resumed run restores
            generator=torch.Generator(),
        )

    return batches


def _use_one_thread(worker: int) -> None:
    cv2.setNumThreads(0)
