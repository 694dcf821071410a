"""The ablation of Table IV: train several schemes with several seeds, and write one table.

A run that two schemes share (the teacher, for example) is trained once.
"""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cfpose_bench.accuracy.crowdpose import OPEC_12
from cfpose_sdk.errors import TrainingError
from cfpose_sdk.files import write_file
from cfpose_training.ablation.jobs import (
    Job,
    Starts,
    Trial,
    Workshop,
    check_starts,
    plan,
    run_jobs,
)
from cfpose_training.ablation.table import LEVELS, Row, require_plotting, write_tables
from cfpose_training.checkpoints.files import load_pose
from cfpose_training.config import Recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.data.people import load_people
from cfpose_training.data.photo_cache import cache_photos
from cfpose_training.nets.pose_net import RefinedPoseNet
from cfpose_training.pose.evaluation import DevelopmentSet, Predictions
from cfpose_training.pose.protocol import PaperPhotos, Protocol
from cfpose_training.pose.train import development_set, pose_spec
from cfpose_training.run.devices import device_type
from cfpose_training.run.loop import LOG_FILE, RunOptions
from cfpose_training.sources import with_joints

RECIPE_FILE = "recipe.txt"
RESULT_FILE = "result.json"
PROTOCOL_KEY = "protocol"  # of a result that was not measured plainly


def run_ablation(
    recipe: Recipe,
    schemes: Sequence[str],
    seeds: Sequence[int],
    data: DataOptions,
    options: RunOptions,
    starts: Starts = Starts(),  # noqa: B008 - immutable
    *,
    processes: int = 1,
    protocol: Protocol = Protocol(),  # noqa: B008 - immutable
) -> list[Row] | None:
    """Train what is not trained yet, measure it, and write the tables into `options.folder`.

    Up to `processes` runs train at once; the table is the same. Networks are measured on the
    accelerator that they are trained on, as `protocol` says. Returns None when time ran out first.
    Raises TrainingError when the folder belongs to another ablation, when the recipe holds out no
    photos to measure on, or when a run is to be several processes.
    """
    require_plotting()
    if options.devices != 1:  # they would claim the folder one after the other
        raise TrainingError(
            f"each run of an ablation is one process, got {options.devices} devices; let several "
            f"runs train at once: --jobs {options.devices}"
        )
    recipe = with_joints(recipe, data.root)
    jobs, trials = plan(recipe, schemes, seeds, own_teacher=starts.teacher is None)
    check_starts(recipe, jobs, starts)
    dev = development_set(recipe, pose_spec(recipe), data)
    if dev is None:
        raise TrainingError("the recipe holds out no photos: set holdout_every of one source")
    photos = PaperPhotos(dev, protocol.boxes, data) if protocol.paper else None
    if photos is not None and photos.note:
        print(f"cfpose-train: {photos.note}", file=sys.stderr)
    _claim(options, recipe, starts)
    if processes > 1:  # decoded once, not by each process
        people = load_people(
            recipe.sources, data.root, dev.spec.skeleton, arithmetic=recipe.pose.arithmetic
        )
        cache_photos(people.photos, data.cache)
    deadline = time.time() + options.max_minutes * 60
    if not run_jobs(jobs, Workshop(data, options, starts, deadline), processes):
        return None
    measured = _Measured(dev, photos, protocol, options)
    rows = [_row(trial, measured) for trial in trials]
    write_tables(rows, options.folder, protocol.text)
    return rows


@dataclass(frozen=True)
class _Measured:
    """What the runs are measured on, and how."""

    dev: DevelopmentSet
    photos: PaperPhotos | None
    protocol: Protocol
    options: RunOptions


def _claim(options: RunOptions, recipe: Recipe, starts: Starts) -> None:
    """Mark the folder as this ablation's. More schemes and seeds may be added later."""
    path = options.folder / RECIPE_FILE
    text = f"{recipe!r}\nteacher: {starts.teacher or 'its own'}\n"
    text += f"init: {starts.init}\n" if starts.init else ""
    text += f"teacher's init: {starts.teacher_init}\n" if starts.teacher_init else ""
    if path.is_file():
        if not options.resume:
            raise TrainingError(
                f"{options.folder} holds an ablation already; pass --resume to go on with it"
            )
        if path.read_text() != text:
            raise TrainingError(
                f"{options.folder} holds the ablation of another recipe or teacher, see {path}; "
                f"give another --out"
            )
        return
    write_file(path, text)


def _row(trial: Trial, measured: _Measured) -> Row:
    figures = _figures(trial.job, measured)
    distill, gcn = trial.job.recipe.distill, trial.job.recipe.stage2.gcn
    return Row(
        scheme=trial.scheme,
        seed=trial.seed,
        kd_fea=distill.kd_fea,
        kd_l1=distill.kd_l1,
        kd_cst=distill.kd_cst,
        kd_logit=distill.kd_logit,
        gcn=gcn if trial.job.stage == "stage2" else "off",
        **figures,
    )


def _figures(job: Job, measured: _Measured) -> dict[str, Any]:
    """The figures of a finished run; measured once by a protocol, then read from its folder."""
    root, wanted = measured.options.folder, measured.protocol.record()
    path = root / job.folder / RESULT_FILE
    if path.is_file():
        stored: dict[str, Any] = json.loads(path.read_text())
        if stored.pop(PROTOCOL_KEY, None) == wanted:
            return stored
    network, _ = load_pose(root / job.checkpoint)
    network.to(device_type(measured.options.accelerator))
    dev = measured.dev
    predictions = coarse = dev.predict(network)
    if isinstance(network, RefinedPoseNet):
        coarse = dev.predict(network.pose)
    losses = _losses(root / job.folder / LOG_FILE)
    figures = {
        **_accuracy(network, predictions, measured),
        "error": joint_error(predictions, dev),
        "coarse_error": joint_error(coarse, dev),
        "loss_first": losses[0],
        "loss_last": losses[-1],
    }
    mark = {} if wanted is None else {PROTOCOL_KEY: wanted}
    write_file(path, json.dumps({**figures, **mark}, indent=1))
    return figures


def _accuracy(
    network: nn.Module, predictions: Predictions, measured: _Measured
) -> dict[str, float | None]:
    """AP by the protocol; `predictions` are plain ones in annotated boxes."""
    dev = measured.dev
    accuracy = dev.accuracy
    if measured.photos is not None:
        predictions, accuracy = measured.photos.predict(network), measured.photos.accuracy
    own = accuracy(predictions)
    figures: dict[str, float | None] = {"AP": own.AP, "AP50": own.AP50, "AP75": own.AP75}
    figures |= {name: _defined(getattr(own, name)) for name in LEVELS}
    if dev.is_crowdpose:
        figures["AP_opec"] = accuracy(predictions, OPEC_12).AP
    return figures


def _defined(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def joint_error(predictions: Predictions, dev: DevelopmentSet) -> float:
    """Mean distance of labelled joints to their labels, in percent of sqrt(area); nan without."""
    people = dev.people
    distance = np.linalg.norm(predictions.xy - people.joints[..., :2], axis=2)
    relative = distance / np.sqrt(np.maximum(people.areas, 1))[:, None]
    labelled = people.joints[..., 2] > 0
    return float(100 * relative[labelled].mean()) if labelled.any() else math.nan


def _losses(log: Path) -> list[float]:
    with open(log, newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]
