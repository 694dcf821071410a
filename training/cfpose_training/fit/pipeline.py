"""The steps of `cfpose-train fit`, in order: labels, stages, calibration, artifact, table.

A step whose file is there is done; the stages go on from their states.
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_sdk.backends.bundled import model_file
from cfpose_sdk.backends.foreign import split_preset
from cfpose_sdk.errors import DatasetError, ExportError, TrainingError, require
from cfpose_sdk.files import what_is_at, write_file
from cfpose_sdk.keypoints import calibrate
from cfpose_training.checkpoints.files import load_pose
from cfpose_training.checkpoints.initial import open_initial
from cfpose_training.config import Recipe, Source, load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.data.people import load_people
from cfpose_training.data.photo_cache import cache_photos, photo_folder
from cfpose_training.data.photo_sizes import other_sizes
from cfpose_training.finish import FINISHED_FILE, finish_student
from cfpose_training.fit.plan import epochs_within, measure_pace, with_epochs
from cfpose_training.fit.score import Judge, Score
from cfpose_training.pose.train import (
    REFINED_FILE,
    STUDENT_FILE,
    check_start,
    development_set,
    train_stage1,
    train_stage2,
)
from cfpose_training.run.loop import RunOptions
from cfpose_training.run.outputs import BEST_FILE
from cfpose_training.run.state import STATE_FILE, differences, recorded, recorded_files
from cfpose_training.sources import with_joints

CLAIM_FILE = "fit.json"
REPORT_FILE = "report.json"
SURE = 0.3  # as cfpose-export has it
LEAST_COMPARED = 0.1  # of the joints
PROOF_PEOPLE = 42
REFINED = 0.5  # of the time of an epoch of stage 1
COMMANDS = "import sys; from cfpose_sdk.commands import {0}; sys.exit({0}())"


@dataclass(frozen=True)
class FitOptions:
    """Where a fit writes, on what, and for how long."""

    out: Path
    max_minutes: float = math.inf
    data_root: Path | None = None  # None: as the recipe says
    accelerator: str = "auto"
    threads: int = 0


@dataclass(frozen=True)
class Fitted:
    """What a fit ended with."""

    artifact: Path
    before: Score | None  # of the start, over the joints that it shares; None: no start to measure
    after: Score | None  # over the same joints; None: no development photos
    whole: Score | None  # over all joints
    calibrated: bool
    people: int  # on the development photos
    # of AP over the same joints, and its 95 % interval
    change: tuple[float, float, float] | None = None

    @property
    def text(self) -> str:
        """The table."""
        if self.whole is None:
            return "no development photos (holdout_every): nothing was measured, uncalibrated"
        rows = [("", "joints", "AP", "AP50")]
        if self.before is not None and self.after is not None and self.before.joints:
            rows.append(("before", *_cells(self.before)))
            if self.after.joints != self.whole.joints:
                rows.append(("after, the same joints", *_cells(self.after)))
        rows.append(("after", *_cells(self.whole)))
        change = []
        if self.change is not None:
            text = "changed by {:+.3f}, 95 % interval {:+.3f} to {:+.3f}, paired by photo"
            change = [text.format(*self.change)]
        lines = [f"{name:24}{joints:>7}{ap:>9}{ap50:>9}" for name, joints, ap, ap50 in rows]
        honest = "" if self.calibrated else "; confidence is uncalibrated"
        return "\n".join(
            [*lines, *change, f"on {self.people} people of the development photos{honest}"]
        )


def _cells(score: Score) -> tuple[str, str, str]:
    ap, ap50 = ("-" if v is None else f"{v:.3f}" for v in (score.AP, score.AP50))
    return str(score.joints), ap, ap50


def run_fit(recipe_file: Path, options: FitOptions) -> Fitted | None:
    """Run what the recipe names and is not done yet; None when the minutes ran out first.

    Raises TrainingError when the folder holds another fit, or a step cannot run; what a step needs
    is asked for before any begins.
    """
    why = "cfpose-train fit, which ends with an exported artifact,"
    require("onnx", "onnxscript", extra="export", why=why)
    require("onnxruntime", extra="cpu", why=why)
    deadline = time.monotonic() + options.max_minutes * 60
    fit = _Fit(load_recipe(recipe_file), recipe_file, options, deadline)
    return fit.run()


@dataclass
class _Fit:
    recipe: Recipe
    file: Path
    options: FitOptions
    deadline: float
    claim: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = self.recipe.fit
        self.root = self.options.data_root or self._path(steps.data_root)
        self.init = self._named(steps.init)
        self.teacher = self._named(steps.teacher)
        self.data = DataOptions(self.root, photo_folder(self.root))
        if self.init is not None:
            open_initial(self.init)  # what is no start is named before anything runs
        check_start(self.recipe, self.init, remedy='init = "default" or a file, in [fit]')
        if self.recipe.distill.active and self.teacher is None:
            raise TrainingError(
                "the recipe's [distill] switches a term on; name its teacher in [fit]"
            )

    def run(self) -> Fitted | None:
        out = self.options.out
        self._label()
        self.recipe = with_joints(self.recipe, self.root)
        dev = next((s for s in self.recipe.sources if s.holdout_every), None)
        self._begin()
        self._check_sizes()
        before = self._before(dev)
        student = out / "stage1" / STUDENT_FILE
        ended = out / ("stage2" if self.recipe.fit.refiner else "") / self._last_file
        if not student.is_file() and not ended.is_file():
            self._plan()
            if (found := self._stage1()) is None:
                return None
            student = found
        checkpoint = ended if ended.is_file() else self._finish(student)
        if checkpoint is None:
            return None
        artifact = self._export(checkpoint, dev)
        return self._report(artifact, before, dev)

    @property
    def _last_file(self) -> str:
        return REFINED_FILE if self.recipe.fit.refiner else FINISHED_FILE

    def _path(self, name: str) -> Path:
        return self.file.parent / name

    def _named(self, name: str) -> Path | None:
        """A start's or teacher's file: a name, or a path that begins at the recipe's folder."""
        if not name:
            return None
        return self._path(name) if "." in name or "/" in name else model_file(name)

    def _labeller(self, name: str) -> str:
        """A labeller as the command takes it: a start's name or file, or PRESET:FILE."""
        foreign = split_preset(name)
        if foreign is None:
            return str(self._named(name))
        return f"{foreign[0]}:{self._path(str(foreign[1]))}"

    def _label(self) -> None:
        """Write the labels that the recipe asks for, each by `cfpose-train label`."""
        for step in self.recipe.fit.labels:
            if what_is_at(self.root / step.out) == "file":
                continue
            command = ["label", "--data-root", str(self.root), "--images", step.images]
            command += ["--out", str(self.root / step.out), "--resume", "--labeller"]
            command += [self._labeller(name) for name in step.labeller]
            if step.annotations:
                who = "--fill" if step.fill else "--only-unlabelled"
                command += ["--annotations", step.annotations, who]
            if step.detector:
                command += ["--detector", str(self._named(step.detector))]
            _child("train", command)

    def _check_sizes(self) -> None:
        """Decode the photos. Raises DatasetError when one is of another size than annotated."""
        assert self.recipe.joints is not None
        for held_out in (False, True):
            sources, root = self.recipe.sources, self.root
            people = load_people(sources, root, self.recipe.joints, held_out=held_out)
            cache = cache_photos(people.photos, self.data.cache)
            if problem := other_sizes(people.photos, people.sizes_wh, cache.sizes_wh):
                raise DatasetError(
                    f"{problem}, or write annotations that fit with: cfpose-train data convert"
                )

    def _begin(self) -> None:
        """Claim the folder for this recipe and these files, or go on with its own fit."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        kept = dataclasses.replace(self.recipe, finder=None)
        record = recorded(kept, "recipe", frozenset({"workers"}))
        record |= recorded_files({"init": self.init, "teacher": self.teacher})
        record = {name.removeprefix("recipe."): value for name, value in record.items()}
        path = self.options.out / CLAIM_FILE
        if path.is_file():
            self.claim = json.loads(path.read_bytes())
            untouched = self.claim.keys() == {"record"}  # it ended before anything was made
            if (changed := differences(self.claim["record"], record)) and not untouched:
                raise TrainingError(
                    f"{self.options.out} holds the fit of another recipe or other files: "
                    f"{'; '.join(changed[:5])}; give another --out, or go on with that one"
                )
            if not changed:
                return
        self._keep(record=record)

    def _keep(self, **values: Any) -> None:
        self.claim |= values
        write_file(self.options.out / CLAIM_FILE, json.dumps(self.claim, indent=1))

    def _judge(self, dev: Source) -> Judge:
        assert self.recipe.joints is not None
        return Judge(dev, self.root, self.data.cache, self.recipe.joints)

    def _before(self, dev: Source | None) -> dict[str, Any] | None:
        """The start's figures, measured once."""
        if dev is None or self.init is None or not open_initial(self.init).is_whole:
            return None
        if "before" not in self.claim:
            _say("measuring the start on the development photos")
            score = self._judge(dev).score(self.init, threads=self.options.threads or None)
            self._keep(before=dataclasses.asdict(score))
        found: dict[str, Any] = self.claim["before"]
        return found

    def _run_options(self, stage: str, minutes: float) -> RunOptions:
        options = self.options
        return RunOptions(
            options.out / stage, resume=True, max_minutes=minutes,
            accelerator=options.accelerator, threads=options.threads,
        )  # fmt: skip

    def _plan(self) -> None:
        """Set the epochs: the recipe's, or as many as end in time; a begun run keeps its own."""
        begun = (self.options.out / "stage1" / STATE_FILE).is_file()
        if not begun or "epochs" not in self.claim:
            epochs, left = self.recipe.stage1.epochs, self.deadline - time.monotonic()
            end_s = 0.0
            if math.isfinite(left):
                pace = measure_pace(self.recipe, self.data, self._run_options("stage1", math.inf))
                left = self.deadline - time.monotonic()
                end_s = pace.end_s
                if self.recipe.fit.refiner:  # its student only looks, and does not learn
                    end_s += self.recipe.stage2.optim.epochs * REFINED * pace.epoch_s
                epochs = epochs_within(pace, left - end_s + pace.end_s, epochs)
                _say(
                    f"{epochs} of {self.recipe.stage1.epochs} epochs, {pace.epoch_s:.0f} s each on "
                    f"{pace.device}, end within the {self.options.max_minutes:g} minutes"
                )
            self._keep(epochs=epochs, end_s=end_s)
        if self.claim["epochs"] != self.recipe.stage1.epochs:
            self.recipe = with_epochs(self.recipe, self.claim["epochs"])

    def _stage1(self) -> Path | None:
        """The student; when time runs out, the best network so far, where there is one."""
        left = self.deadline - time.monotonic() - self.claim["end_s"]
        run = self._run_options("stage1", max(0.1, left / 60))
        teacher = self.teacher if self.recipe.distill.active else None
        student = train_stage1(self.recipe, self.data, run, teacher, init=self.init)
        best = run.folder / BEST_FILE
        if student is None and best.is_file() and not self.recipe.fit.refiner:
            _say("time is up: going on with the best network so far")
            return best
        return student

    def _finish(self, student: Path) -> Path | None:
        """The checkpoint of the artifact, with confidence and covariance fitted."""
        steps, out = self.recipe.fit, self.options.out
        if steps.refiner:
            left = max(0.1, (self.deadline - time.monotonic()) / 60)
            run = self._run_options("stage2", left)
            return train_stage2(self.recipe, student, self.data, run, self._refiner_teacher())
        _say("fitting confidence and covariance on the development photos")
        init = self.init if steps.init_share else None
        return finish_student(
            self.recipe, student, self.data, out, init=init, init_share=steps.init_share
        )

    def _refiner_teacher(self) -> Path | None:
        return self.teacher if self.recipe.stage2.gcn in ("teacher", "mix") else None

    def _export(self, checkpoint: Path, dev: Source | None) -> Path:
        """The artifact, proven on people of the data."""
        artifact = self.options.out / f"{self.recipe.pose.name}.onnx"
        if not artifact.is_file():
            _say(f"exporting {artifact}")
            photos, sure = self._proof_people(dev), self._sure(checkpoint)
            command = ["onnx", "--checkpoint", str(checkpoint), "--output", str(artifact)]
            _child("export", [*command, "--photos", str(photos), "--min-confidence", f"{sure:.4f}"])
        return artifact

    def _sure(self, checkpoint: Path) -> float:
        """Confidence from which the export compares joints: its own, or less where few reach it."""
        network, spec = load_pose(checkpoint)
        dev = development_set(self.recipe, spec, self.data)
        if dev is None:
            return SURE
        confidence = calibrate(dev.predict(network).score, spec.calibration)
        return float(min(SURE, np.quantile(confidence, 1 - LEAST_COMPARED)))

    def _proof_people(self, dev: Source | None) -> Path:
        """A folder with the list of people that the export's proof looks at."""
        assert self.recipe.joints is not None
        sources = [dev] if dev is not None else list(self.recipe.sources)
        people = load_people(sources, self.root, self.recipe.joints, held_out=dev is not None)
        listed: dict[str, list[list[float]]] = {}
        for photo, box in list(zip(people.photo, people.boxes, strict=True))[:PROOF_PEOPLE]:
            listed.setdefault(str(people.photos[photo].resolve()), []).append(box.tolist())
        folder = self.options.out / "proof"
        write_file(folder / "people.json", json.dumps(listed))
        return folder

    def _report(self, artifact: Path, before: dict[str, Any] | None, dev: Source | None) -> Fitted:
        start = None if before is None else Score(**before)
        whole = after = None
        change = None
        people = 0
        if dev is not None:
            _say("measuring the artifact on the development photos")
            judge, threads = self._judge(dev), self.options.threads or None
            whole = after = judge.score(artifact, threads=threads)
            if start is not None and start.joints and self.init is not None:
                known = open_initial(self.init).joints
                change = judge.difference(self.init, artifact, known, threads=threads)
                if start.joints != whole.joints:
                    after = judge.score(artifact, known, threads=threads)
            people = len(load_people([dev], self.root, judge.skeleton, held_out=True))
        fitted = Fitted(artifact, start, after, whole, dev is not None, people, change)
        content = {**dataclasses.asdict(fitted), "artifact": artifact.name}
        write_file(self.options.out / REPORT_FILE, json.dumps(content, indent=1))
        return fitted


def _child(command: str, arguments: Sequence[str]) -> None:
    """Run a command of cfpose in a process of its own. Raises ExportError when it fails."""
    code = COMMANDS.format(command)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise ExportError(
            f"cfpose-{command} {' '.join(arguments)} ended with code {done.returncode}; what it "
            f"said is above; run the same fit again once that is mended"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
