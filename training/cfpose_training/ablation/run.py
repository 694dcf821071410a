"""The ablation of Table IV: train several schemes with several seeds, and write one table.

A run that two schemes share (the teacher, for example) is trained once.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.files import write_file
from cfpose_training.ablation.schemes import scheme, seeded
from cfpose_training.ablation.table import LEVELS, Row, require_plotting, write_tables
from cfpose_training.checkpoints.files import load_pose
from cfpose_training.config import Recipe, teacher_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.nets.pose_net import RefinedPoseNet
from cfpose_training.pose.evaluation import DevelopmentSet, Predictions
from cfpose_training.pose.train import (
    REFINED_FILE,
    STUDENT_FILE,
    TEACHER_FILE,
    check_start,
    development_set,
    pose_spec,
    train_stage1,
    train_stage2,
    train_teacher,
)
from cfpose_training.run.loop import LOG_FILE, RunOptions
from cfpose_training.sources import with_joints

TEACHER_FOLDER = "teacher"
RECIPE_FILE = "recipe.txt"
RESULT_FILE = "result.json"
FILES = {"teacher": TEACHER_FILE, "stage1": STUDENT_FILE, "stage2": REFINED_FILE}


@dataclass(frozen=True)
class Job:
    """One training run of the ablation."""

    folder: str  # below the ablation's
    stage: Literal["teacher", "stage1", "stage2"]
    recipe: Recipe
    student: str = ""  # stage2: folder of the student's run
    taught: bool = False  # needs the teacher

    @property
    def checkpoint(self) -> str:
        """The file that ends the run, below the ablation's folder."""
        return f"{self.folder}/{FILES[self.stage]}"


@dataclass(frozen=True)
class Trial:
    """One scheme with one seed, and its last run."""

    scheme: str
    seed: int
    job: Job


def plan(
    recipe: Recipe, schemes: Sequence[str], seeds: Sequence[int], *, own_teacher: bool
) -> tuple[list[Job], list[Trial]]:
    """The runs in order, each once, and the trials that they belong to.

    With `own_teacher` the plan trains a teacher first where a scheme needs one. Raises
    TrainingError for an unknown scheme, or a teacher that the recipe does not describe or that
    cannot be trained from scratch.
    """
    if not schemes or not seeds:
        raise TrainingError(f"nothing to run: schemes {list(schemes)}, seeds {list(seeds)}")
    jobs: dict[str, Job] = {}
    trials = []
    for seed in dict.fromkeys(seeds):
        for name in dict.fromkeys(schemes):
            variant = seeded(scheme(recipe, name), seed)
            first = _stage1_job(variant, seed)
            last = jobs.setdefault(first.folder, first)
            if variant.stage2.gcn != "off":
                second = _stage2_job(variant, seed, first)
                last = jobs.setdefault(second.folder, second)
            trials.append(Trial(name, seed, last))
    ordered = list(jobs.values())
    if own_teacher and any(job.taught for job in ordered):
        ordered.insert(0, Job(TEACHER_FOLDER, "teacher", recipe))
        # before anything runs; the teacher's recipe refuses one without a teacher
        check_start(teacher_recipe(recipe).pose, None, "--teacher: an own one starts from nothing")
    return ordered, trials


def _stage1_job(recipe: Recipe, seed: int) -> Job:
    distill = recipe.distill
    names = ("kd_fea", "kd_l1", "kd_cst", "kd_logit")
    terms = [name.removeprefix("kd_") for name in names if getattr(distill, name)]
    label = "-".join(terms) or "labels"
    return Job(f"seed{seed}/stage1-{label}", "stage1", recipe, taught=distill.active)


def _stage2_job(recipe: Recipe, seed: int, first: Job) -> Job:
    label = first.folder.rpartition("stage1-")[2]
    gcn = recipe.stage2.gcn
    return Job(
        f"seed{seed}/stage2-{gcn}-on-{label}", "stage2", recipe, first.folder, taught=gcn != "gt"
    )


def run_ablation(
    recipe: Recipe,
    schemes: Sequence[str],
    seeds: Sequence[int],
    data: DataOptions,
    options: RunOptions,
    teacher: Path | None = None,
    *,
    init: Path | None = None,
) -> list[Row] | None:
    """Train what is not trained yet, measure it, and write the tables into `options.folder`.

    `teacher` is a checkpoint to use; without one the recipe's own is trained, from scratch.
    `init` is what every student starts from. Returns None when time ran out first. Raises
    TrainingError when the folder belongs to another ablation, when the recipe holds out no
    photos to measure on, or when it is to be several processes.
    """
    require_plotting()
    if options.devices != 1:  # they would claim the folder one after the other
        raise TrainingError(
            f"an ablation runs in one process, got {options.devices} devices; give each seed an "
            f"--out of its own"
        )
    recipe = with_joints(recipe, data.root)
    jobs, trials = plan(recipe, schemes, seeds, own_teacher=teacher is None)
    dev = development_set(recipe, pose_spec(recipe), data)
    if dev is None:
        raise TrainingError("the recipe holds out no photos: set holdout_every of one source")
    _claim(options, recipe, teacher, init)
    deadline = time.monotonic() + options.max_minutes * 60
    taught_by = teacher or options.folder / TEACHER_FOLDER / TEACHER_FILE
    for number, job in enumerate(jobs, start=1):
        if (options.folder / job.checkpoint).is_file():
            continue
        print(f"run {number} of {len(jobs)}: {job.folder}", flush=True)
        minutes = max(0.0, (deadline - time.monotonic()) / 60)
        run_options = _job_options(options, job, minutes)
        if not _run(job, data, run_options, options.folder, taught_by, init):
            return None
    rows = [_row(trial, dev, options.folder) for trial in trials]
    write_tables(rows, options.folder)
    return rows


def _job_options(options: RunOptions, job: Job, minutes: float) -> RunOptions:
    return dataclasses.replace(
        options, folder=options.folder / job.folder, resume=True, max_minutes=minutes
    )


def _run(
    job: Job, data: DataOptions, options: RunOptions, root: Path, teacher: Path, init: Path | None
) -> bool:
    """Train one job; False when time ran out."""
    taught_by = teacher if job.taught else None
    if job.stage == "teacher":
        done = train_teacher(job.recipe, data, options)
    elif job.stage == "stage1":
        done = train_stage1(job.recipe, data, options, taught_by, init=init)
    else:
        student = root / job.student / STUDENT_FILE
        done = train_stage2(job.recipe, student, data, options, taught_by)
    return done is not None


def _claim(options: RunOptions, recipe: Recipe, teacher: Path | None, init: Path | None) -> None:
    """Mark the folder as this ablation's. More schemes and seeds may be added later."""
    path = options.folder / RECIPE_FILE
    text = f"{recipe!r}\nteacher: {teacher or 'its own'}\n"
    text += f"init: {init}\n" if init else ""
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


def _row(trial: Trial, dev: DevelopmentSet, root: Path) -> Row:
    figures = _figures(trial.job, dev, root)
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


def _figures(job: Job, dev: DevelopmentSet, root: Path) -> dict[str, Any]:
    """The figures of a finished run; measured once, then read from its folder."""
    path = root / job.folder / RESULT_FILE
    if path.is_file():
        stored: dict[str, Any] = json.loads(path.read_text())
        return stored
    network, _ = load_pose(root / job.checkpoint)
    predictions = coarse = dev.predict(network)
    if isinstance(network, RefinedPoseNet):
        coarse = dev.predict(network.pose)
    accuracy = dev.accuracy(predictions)
    losses = _losses(root / job.folder / LOG_FILE)
    figures = {
        "AP": accuracy.AP,
        "AP50": accuracy.AP50,
        "AP75": accuracy.AP75,
        "error": joint_error(predictions, dev),
        "coarse_error": joint_error(coarse, dev),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        **{name: _defined(getattr(accuracy, name)) for name in LEVELS},
    }
    path.write_text(json.dumps(figures, indent=1))
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
