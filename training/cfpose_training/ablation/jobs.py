"""The training runs of an ablation: which there are, and how they run, one by one or side by side.

Side by side each run is a process of its own, on a GPU of its own where there are several. It sets
every random state itself, so that it ends as it would alone, and what it prints goes into its
folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import torch

from cfpose_sdk.errors import CfposeError, TrainingError
from cfpose_training.ablation.schemes import scheme, seeded
from cfpose_training.config import Recipe, teacher_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.pose.train import (
    REFINED_FILE,
    STUDENT_FILE,
    TEACHER_FILE,
    check_start,
    train_stage1,
    train_stage2,
    train_teacher,
)
from cfpose_training.run.devices import device_type
from cfpose_training.run.loop import RunOptions

TEACHER_FOLDER = "teacher"
OUTPUT_FILE = "output.txt"  # what a run in a process of its own prints
FILES = {"teacher": TEACHER_FILE, "stage1": STUDENT_FILE, "stage2": REFINED_FILE}
VISIBLE = "CUDA_VISIBLE_DEVICES"


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


@dataclass(frozen=True)
class Starts:
    """What the runs begin from. `teacher` is a checkpoint to use; None: the recipe's is trained,
    from `teacher_init`. `init` is every student's start. None begins on random weights, which a
    recipe may refuse without `from_scratch`.
    """

    teacher: Path | None = None
    teacher_init: Path | None = None
    init: Path | None = None
    from_scratch: bool = False


@dataclass(frozen=True)
class Workshop:
    """What all runs share; it travels to other processes. `deadline`: of `time.time`."""

    data: DataOptions
    options: RunOptions  # `folder` is the ablation's
    starts: Starts
    deadline: float


def plan(
    recipe: Recipe, schemes: Sequence[str], seeds: Sequence[int], *, own_teacher: bool
) -> tuple[list[Job], list[Trial]]:
    """The runs in order, each once, and the trials that they belong to.

    With `own_teacher` the plan trains a teacher first where a scheme needs one. Raises
    TrainingError for an unknown scheme, or a teacher that the recipe does not describe.
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
        teacher_recipe(recipe)  # refuses one without a teacher
    return ordered, trials


def check_starts(recipe: Recipe, jobs: Sequence[Job], starts: Starts) -> None:
    """Raise TrainingError where a run needs weights to begin on that nobody gives."""
    scratch = starts.from_scratch
    if any(job.stage == "teacher" for job in jobs):
        swapped, option = teacher_recipe(recipe), "--teacher-init"
        check_start(swapped, starts.teacher_init, option=option, from_scratch=scratch)
    check_start(recipe, starts.init, from_scratch=scratch)


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


def run_jobs(jobs: Sequence[Job], workshop: Workshop, processes: int = 1) -> bool:
    """Train what is not trained yet, up to `processes` runs at once; False when time ran out.

    Ctrl-C lets each run save its state, and ends all. Raises TrainingError as the runs do, after
    the others have saved theirs.
    """
    root = workshop.options.folder
    todo = [job for job in jobs if not (root / job.checkpoint).is_file()]
    numbers = {job.folder: number for number, job in enumerate(jobs, start=1)}
    if processes > 1:
        return _Team(workshop, processes, len(jobs), numbers).work(todo)
    for job in todo:
        print(f"run {numbers[job.folder]} of {len(jobs)}: {job.folder}", flush=True)
        if not run_job(job, workshop):
            return False
    return True


def run_job(job: Job, workshop: Workshop) -> bool:
    """Train one job in this process; False when time ran out."""
    starts, root = workshop.starts, workshop.options.folder
    teacher = starts.teacher or root / TEACHER_FOLDER / TEACHER_FILE
    taught_by = teacher if job.taught else None
    minutes = max(0.0, (workshop.deadline - time.time()) / 60)
    options = dataclasses.replace(
        workshop.options, folder=root / job.folder, resume=True, max_minutes=minutes
    )
    scratch = starts.from_scratch
    if job.stage == "teacher":
        init = starts.teacher_init
        done = train_teacher(job.recipe, workshop.data, options, init=init, from_scratch=scratch)
    elif job.stage == "stage1":
        done = train_stage1(
            job.recipe, workshop.data, options, taught_by, init=starts.init, from_scratch=scratch
        )
    else:
        student = root / job.student / STUDENT_FILE
        done = train_stage2(job.recipe, student, workshop.data, options, taught_by)
    return done is not None


Answer = tuple[Literal["done", "late", "stopped", "failed"], str]


class _Team:
    """Runs in processes of their own. A place of the team is a GPU, where there are several."""

    def __init__(
        self, workshop: Workshop, processes: int, total: int, numbers: dict[str, int]
    ) -> None:
        self._workshop, self._total, self._numbers = workshop, total, numbers
        gpus = _visible_gpus() if device_type(workshop.options.accelerator) == "cuda" else []
        self._free = [gpus[n % len(gpus)] if gpus else "" for n in range(processes)]
        self._at_work: dict[Connection, tuple[BaseProcess, Job, str]] = {}

    def work(self, todo: Sequence[Job]) -> bool:
        """Run the jobs, each once those are done that it needs; False when time ran out."""
        waiting, in_time = list(todo), True
        try:
            while waiting or self._at_work:
                unfinished = {job.folder for job in waiting}
                unfinished |= {job.folder for _, job, _ in self._at_work.values()}
                for job in [job for job in waiting if not unfinished & _needed(job)]:
                    if self._free:
                        waiting.remove(job)
                        self._begin(job)
                for answer in wait(list(self._at_work)):
                    assert isinstance(answer, Connection)
                    if self._end(answer) == "late":
                        waiting, in_time = [], False
        finally:
            self._stop()
        return in_time

    def _begin(self, job: Job) -> None:
        place = self._free.pop(0)
        mine, theirs = multiprocessing.Pipe(duplex=False)
        folder = self._workshop.options.folder / job.folder
        folder.mkdir(parents=True, exist_ok=True)
        process = multiprocessing.get_context("spawn").Process(
            target=_run_alone, args=(job, self._workshop, place, folder / OUTPUT_FILE, theirs)
        )
        process.start()
        theirs.close()
        self._at_work[mine] = process, job, place
        print(f"run {self._numbers[job.folder]} of {self._total} begins: {job.folder}", flush=True)

    def _end(self, answer: Connection) -> str:
        """Take a run's answer. Raises TrainingError where it failed."""
        process, job, place = self._at_work.pop(answer)
        said: Answer = "failed", "its process ended without a word"
        with contextlib.suppress(EOFError):
            said = answer.recv()
        kind, text = said
        answer.close()
        process.join()
        self._free.append(place)
        if kind in ("failed", "stopped"):
            log = self._workshop.options.folder / job.folder / OUTPUT_FILE
            raise TrainingError(f"the run {job.folder} {kind}: {text or 'a signal'}; see {log}")
        end = "ends" if kind == "done" else "is out of time"
        print(f"run {self._numbers[job.folder]} of {self._total} {end}: {job.folder}", flush=True)
        return kind

    def _stop(self) -> None:
        """Let the runs that are under way save their states, and wait for them."""
        for process, *_ in self._at_work.values():
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        for process, *_ in self._at_work.values():
            process.join()


def _needed(job: Job) -> set[str]:
    """Folders of the runs whose files a job reads."""
    return {job.student, TEACHER_FOLDER if job.taught else ""} - {""}


def _run_alone(job: Job, workshop: Workshop, gpu: str, output: Path, answer: Connection) -> None:
    """The whole life of a run's process."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches it through its parent, once
    if gpu:
        os.environ[VISIBLE] = gpu
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(output, "a") as file:
        for stream in (1, 2):  # and what this process starts prints there, too
            os.dup2(file.fileno(), stream)
        try:
            said: Answer = ("done" if run_job(job, workshop) else "late", "")
        except KeyboardInterrupt:
            said = "stopped", ""
        except CfposeError as error:
            said = "failed", str(error)
        except BaseException as error:  # whatever it was, the parent is told
            traceback.print_exc()
            said = "failed", f"{type(error).__name__}: {error}"
    answer.send(said)
    answer.close()


def _end_with_parent() -> None:
    """Stop the run, its state saved, when the process that waits for it has gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGINT)


def _visible_gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return named or [str(number) for number in range(torch.cuda.device_count())]
