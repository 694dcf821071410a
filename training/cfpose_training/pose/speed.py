"""Measure the speed of the loader and of the network, each alone."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cfpose_sdk.errors import TrainingError
from cfpose_training.config import OptimConfig, Recipe
from cfpose_training.data.crop_dataset import Batch, DataOptions
from cfpose_training.data.loader import Batches, Shard, batches_per_epoch
from cfpose_training.data.people import People
from cfpose_training.nets.pose_net import PoseNet
from cfpose_training.pose.run import PoseRun
from cfpose_training.pose.train import pose_spec
from cfpose_training.run.devices import launch_fabric, prepare
from cfpose_training.run.loop import RunOptions
from cfpose_training.sources import with_joints
from cfpose_training.stages.base import Stage
from cfpose_training.stages.stage1 import LabelStage

SAMPLE = 512  # people, where no cache of a run is given
PREFETCHED = 2  # batches that each loader process holds ready, as torch has it


@dataclass(frozen=True)
class Speed:
    """Samples per second in stage 1 on labels, without a teacher."""

    loader: float
    network: float  # forward and backward on one and the same batch
    batches: int  # that were timed, of each
    batch_size: int
    workers: int
    device: str

    @property
    def text(self) -> str:
        """The two figures, and which of the two limits a run."""
        slower = "loader" if self.loader < self.network else "network"
        return (
            f"loader alone: {self.loader:.1f} samples/s, with {self.workers} processes\n"
            f"network alone: {self.network:.1f} samples/s, forward and backward on {self.device}\n"
            f"the {slower} is the slower one ({self.batches} batches of {self.batch_size} each)"
        )


def measure_speed(
    recipe: Recipe,
    root: Path,
    options: RunOptions,
    *,
    cache: Path | None = None,
    workers: int | None = None,
    count: int = 20,
) -> Speed:
    """Time `count` batches of stage 1, loaded and then learnt; None workers: as in the recipe.

    `cache` is the folder of a run's decoded photos, on the disk that it is read from. Without it
    some of the photos are decoded into a temporary folder, and the disk's speed is left out.
    On a machine without an accelerator the two share its cores in a run, so their sum counts.
    Raises TrainingError when there is nothing to time.
    """
    if count < 1:
        raise TrainingError(f"nothing to time: {count} batches; give 1 or more")
    used = recipe.stage1.workers if workers is None else workers
    optim = dataclasses.replace(recipe.stage1, workers=used)
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = with_joints(recipe, root)
    spec = pose_spec(recipe)
    warm_up = 1 + PREFETCHED * used
    with tempfile.TemporaryDirectory() as folder:
        cached = DataOptions(root, cache or Path(folder))
        run = PoseRun(optim, spec, recipe, cached, options, None)
        people = run.people()
        if cache is None:
            people = some_people(people, SAMPLE, visits=(count + warm_up) * optim.batch_size)
        batches_per_epoch(people.repeat, optim)  # refuses data without one whole batch
        loader, batch = loader_rate(run.batches(people), count, warm_up=warm_up)
    network = PoseNet(recipe.pose.backbone, spec, recipe.pose.head)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stage = LabelStage(network, spec, recipe.labels)
    rate, device = network_rate(stage, batch, optim, options, count)
    return Speed(loader, rate, count, optim.batch_size, used, device)


def some_people(people: People, count: int, visits: int) -> People:
    """At most `count` of the people and their photos, repeated to make `visits` an epoch."""
    chosen = np.unique(np.linspace(0, len(people) - 1, min(count, len(people))).astype(np.intp))
    photos, photo = np.unique(people.photo[chosen], return_inverse=True)
    return People(
        photos=tuple(people.photos[index] for index in photos),
        image_ids=tuple(people.image_ids[index] for index in photos),
        photo=photo.astype(np.intp),
        boxes=people.boxes[chosen],
        joints=people.joints[chosen],
        areas=people.areas[chosen],
        repeat=np.full(len(chosen), -(-visits // len(chosen)), dtype=np.intp),
        joint_weight=people.joint_weight[chosen],
    )


def loader_rate(batches: Batches, count: int, *, warm_up: int) -> tuple[float, Batch]:
    """Samples per second over `count` batches after `warm_up` ones, and the last batch."""
    endless = _endless(batches)
    batch = next(endless)
    for _ in range(warm_up - 1):
        batch = next(endless)
    samples, start = 0, time.perf_counter()
    for _ in range(count):
        batch = next(endless)
        samples += _size(batch)
    return samples / (time.perf_counter() - start), batch


def network_rate(
    stage: Stage, batch: Batch, optim: OptimConfig, options: RunOptions, count: int
) -> tuple[float, str]:
    """Samples per second of a forward and backward pass on one batch, and the device's type."""
    fabric = launch_fabric(options.accelerator, 1, optim.precision)
    prepare(stage, optim)
    module = fabric.setup(stage)
    module.train()
    batch = fabric.to_device(batch)
    start = 0.0
    for turn in range(count + 1):  # the first one warms up
        fabric.backward(module(batch)["loss"])
        module.zero_grad(set_to_none=True)
        if turn in (0, count) and fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)
        if turn == 0:
            start = time.perf_counter()
    return count * _size(batch) / (time.perf_counter() - start), fabric.device.type


def _endless(batches: Batches) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from batches(epoch, 0, Shard())
        epoch += 1


def _size(batch: Batch) -> int:
    return len(next(iter(batch.values())))
