"""How many epochs fit into the minutes that are given, with the artifact and the figures."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from cfpose_training.config import OptimConfig, Recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.data.people import load_people
from cfpose_training.pose.speed import measure_speed
from cfpose_training.run.loop import RunOptions

TAUGHT = 1.6  # times as long with a teacher
FORWARD = 1 / 3  # of the time of a pass forward and back
EXPORT_S, EXPORT_STEPS = 20.0, 25  # to export and prove: by guess, more where steps are slow
MARGIN = 1.2  # times what was measured: other work, warm caches
TIMED = 3  # batches


@dataclass(frozen=True)
class Pace:
    """Seconds that a run's parts take here, measured on a few batches."""

    step_s: float
    steps: int  # an epoch
    measure_s: float  # of the development people, once
    device: str

    @property
    def epoch_s(self) -> float:
        """An epoch and its figures."""
        return self.steps * self.step_s + self.measure_s

    @property
    def end_s(self) -> float:
        """All that follows the last epoch: calibration, artifact, table."""
        return 6 * self.measure_s + EXPORT_S + EXPORT_STEPS * self.step_s

    def minutes(self, epochs: int) -> float:
        """Of so many epochs and what follows."""
        return (epochs * self.epoch_s + self.end_s) / 60


def measure_pace(recipe: Recipe, data: DataOptions, options: RunOptions) -> Pace:
    """Time a few batches of stage 1 on this machine; decodes the photos first.

    Raises TrainingError when there is not one batch of people.
    """
    assert recipe.joints is not None
    speed = measure_speed(recipe, data.root, options, cache=data.cache, count=TIMED)
    people = load_people(recipe.sources, data.root, recipe.joints)
    held_out = [s for s in recipe.sources if s.holdout_every][:1]
    count = len(load_people(held_out, data.root, recipe.joints, held_out=True))
    sample_s = 1 / speed.network * (TAUGHT if recipe.distill.active else 1)
    if not recipe.stage1.workers:  # else they load beside
        sample_s += 1 / speed.loader
    size = recipe.stage1.batch_size
    return Pace(
        step_s=size * sample_s,
        steps=int(people.repeat.sum()) // size,
        measure_s=count * (FORWARD / speed.network + 1 / speed.loader),
        device=speed.device,
    )


def epochs_within(pace: Pace, seconds: float, wanted: int) -> int:
    """As many of the wanted epochs as end within so many seconds, artifact included; at least 1."""
    if not math.isfinite(seconds):
        return wanted
    room = seconds / MARGIN - pace.end_s
    return max(1, min(wanted, int(room / max(1e-9, pace.epoch_s))))


def shortened(optim: OptimConfig, epochs: int) -> OptimConfig:
    """The same run in fewer epochs: milestones, warm-up and mild epochs shrink with them."""
    share = epochs / optim.epochs
    return dataclasses.replace(
        optim,
        epochs=epochs,
        mild_epochs=min(round(optim.mild_epochs * share), epochs - 1),
        warmup_steps=round(optim.warmup_steps * share),
        milestones=tuple(max(1, round(m * share)) for m in optim.milestones),
    )


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe with another number of epochs in stage 1."""
    return dataclasses.replace(recipe, stage1=shortened(recipe.stage1, epochs))
