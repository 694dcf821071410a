"""The steps of a reproduction in order: every step a command that can be run by hand.

Data are checked; the teacher, each student and each refiner are trained once, whichever rows of the
table share them; each trained network is exported with the flip test inside its graph, and measured
by the paper's protocol.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cfpose_sdk.errors import DatasetError, TrainingError
from cfpose_training.ablation.jobs import TEACHER_FOLDER, Job, plan
from cfpose_training.config import Recipe, teacher_recipe
from cfpose_training.pose.train import STUDENT_FILE, TEACHER_FILE
from cfpose_training.reproduce.targets import OFFICIAL, TEACHER, DatasetName, Table, Target
from cfpose_training.reproduce.variants import measured_source

Program = Literal["train", "export", "bench"]
Kind = Literal["check", "teacher", "stage1", "stage2", "convert", "export", "measure"]
TRAINS = ("teacher", "stage1", "stage2")
BOXES: dict[DatasetName, str] = {
    "coco": "COCO_val2017_detections_AP_H_56_person.json",
    "crowdpose": "det_for_crowd_test_0.1_0.5.json",
}
BOX_FOLDERS = ("person_detection_results", "annotations", "json", "")  # below root, coco, crowdpose
IMAGENET = {32: "hrnet_w32-36af842e.pth", 48: "hrnet_w48-8ef0771d.pth"}  # HRNet's, by width
IMAGENET_FOLDER = "imagenet"
RECIPES, GRAPHS, REPORTS = "recipes", "graphs", "reports"
OFFICIAL_FOLDER = "official"
SURE = "0.05"  # of a peak's mass, from which the export's proof compares a joint; even bins: 0.003


@dataclass(frozen=True)
class Options:
    """What is to be reproduced, from where, and on what."""

    dataset: DatasetName
    table: Table
    out: Path
    data_root: Path
    seeds: tuple[int, ...] = (1,)
    schemes: tuple[str, ...] = ()  # (): those of the table
    boxes: str = ""  # a file or "gt"; "": the published file at its usual places
    imagenet: Path | None = None  # folder of HRNet's ImageNet weights; None: `imagenet` below root
    from_scratch: bool = False  # start from random weights
    official: tuple[Path, ...] = ()  # published checkpoints to measure; then nothing is trained
    devices: int = 1  # steps side by side, each on its own device
    accelerator: str = "auto"
    threads: int = 0
    cache: Path | None = None
    miniature: bool = False


@dataclass(frozen=True)
class Step:
    """A command, and what it takes and gives."""

    name: str
    program: Program
    arguments: tuple[str, ...]  # what decides the result
    output: Path  # there when the step is done
    settings: tuple[str, ...] = ()  # where and how it runs; the result is the same
    needs: tuple[str, ...] = ()  # steps that come first
    recipe: Recipe | None = None  # of the run, where it trains
    kind: Kind = "check"
    taught: bool = False

    @property
    def command(self) -> str:
        """As it is typed into a shell."""
        return shlex.join([f"cfpose-{self.program}", *self.arguments, *self.settings])


@dataclass(frozen=True)
class Row:
    """A row of the table, and the steps that its figures come from."""

    target: Target
    measured: tuple[str, ...]  # steps, one a seed
    trained: tuple[str, ...] = ()  # all training steps that it needs


@dataclass(frozen=True)
class Plan:
    """All steps, in an order in which they can run, and the rows of the table."""

    steps: tuple[Step, ...]
    rows: tuple[Row, ...]
    recipes: dict[str, Recipe] = field(default_factory=dict)  # file name -> content

    def step(self, name: str) -> Step:
        """The step of a name."""
        return next(step for step in self.steps if step.name == name)


def make_plan(options: Options, recipe: Recipe) -> Plan:
    """The plan of a table, or of measuring published checkpoints.

    Raises TrainingError for a scheme that Table IV does not have.
    """
    maker = _Maker(options, recipe)
    return maker.official() if options.official else maker.table()


def check_files(options: Options, plan: Plan) -> None:
    """Raise DatasetError naming every file that the plan needs beside the data set, and its source.

    The data set itself is the first step's to check.
    """
    if not os.path.isdir(options.data_root):
        raise DatasetError(f"--data-root {options.data_root} is no folder that is there")
    needed = {}
    boxes = boxes_of(options)
    if boxes != "gt":
        needed[Path(boxes)] = "person boxes, or --boxes; see: cfpose-train data fetch boxes"
    kinds = {step.kind for step in plan.steps}
    if not options.from_scratch and kinds & {"teacher", "stage1"}:
        widths = [32, 48] if "teacher" in kinds else [32]
        needed |= {
            imagenet_file(options, width): "ImageNet weights of HRNet; cfpose-train data fetch "
            "imagenet-hrnet, or --from-scratch (the paper starts from them)"
            for width in widths
        }
    needed |= dict.fromkeys(options.official, "a published checkpoint of SimCC")
    missing = [f"{path} ({what})" for path, what in needed.items() if not os.path.isfile(path)]
    if missing:
        raise DatasetError(f"{len(missing)} files are missing: {'; '.join(missing)}")


def boxes_of(options: Options) -> str:
    """The file of person boxes: as asked for, else the first usual place where it is."""
    if options.boxes:
        return options.boxes
    name, root = BOXES[options.dataset], options.data_root
    places = [root / top / folder / name for top in ("", options.dataset) for folder in BOX_FOLDERS]
    return str(next((place for place in places if os.path.isfile(place)), places[0]))


def imagenet_file(options: Options, width: int) -> Path:
    """HRNet's ImageNet weights of a width."""
    folder = options.imagenet or options.data_root / IMAGENET_FOLDER
    return folder / IMAGENET[width]


@dataclass
class _Maker:
    options: Options
    recipe: Recipe
    steps: list[Step] = field(default_factory=list)
    recipes: dict[str, Recipe] = field(default_factory=dict)

    def table(self) -> Plan:
        """Train and measure what the rows need, each network right after its training."""
        options = self.options
        schemes = options.schemes or options.table.schemes
        jobs, trials = plan(self.recipe, schemes, options.seeds, own_teacher=True)
        folders = {
            scheme: [t.job.folder for t in trials if t.scheme == scheme] for scheme in schemes
        }
        folders[TEACHER] = [job.folder for job in jobs if job.stage == TEACHER]
        wanted = {
            folder for target in options.table.targets for folder in folders.get(target.key, ())
        }
        self._check()
        measured: dict[str, str] = {}
        for job in jobs:
            after = self._train(job)
            if job.folder in wanted:
                checkpoint = options.out / job.checkpoint
                measured[job.folder] = self._export_and_measure(job.folder, checkpoint, after)
        rows = []
        for target in options.table.targets:
            steps = tuple(measured[folder] for folder in folders.get(target.key, ()))
            trained = dict.fromkeys(name for step in steps for name in self._training(step))
            if steps:
                rows.append(Row(target, steps, tuple(trained)))
        return Plan(tuple(self.steps), tuple(rows), self.recipes)

    def official(self) -> Plan:
        """Convert and measure published checkpoints; nothing is trained."""
        out = self.options.out
        rows = []
        for path in self.options.official:
            width = _width(path)
            recipe = teacher_recipe(self.recipe) if width == 48 else self.recipe
            place = out / OFFICIAL_FOLDER / f"{path.stem}.safetensors"
            words = ["convert", str(path), "-o", str(place)]
            words += ["--recipe", self._recipe_file(f"w{width}", recipe)]
            name = f"convert {path.stem}"
            self.steps.append(Step(name, "train", tuple(words), place, kind="convert"))
            title = f"{OFFICIAL[width].title}: {path.name}"
            target = dataclasses.replace(OFFICIAL[width], key=path.stem, title=title)
            rows.append(Row(target, (self._export_and_measure(path.stem, place, name),)))
        return Plan(tuple(self.steps), tuple(rows), self.recipes)

    def _check(self) -> None:
        file = self._recipe_file("check", self.recipe)
        words = ("data", "check", str(self.options.data_root), "--recipe", file)
        self.steps.append(Step("check", "train", words, Path(file)))

    def _recipe_file(self, name: str, recipe: Recipe) -> str:
        file = f"{name.replace('/', '-')}.toml"
        self.recipes[file] = recipe
        return str(self.options.out / RECIPES / file)

    def _train(self, job: Job) -> str:
        """A run of the teacher, a student, or a refiner; gives the step."""
        options = self.options
        words = [job.stage, "--recipe", self._recipe_file(job.folder, job.recipe)]
        words += ["--data-root", str(options.data_root), "--out", str(options.out / job.folder)]
        needs = ["check"]
        if job.student:
            words += ["--student", str(options.out / job.student / STUDENT_FILE)]
            needs.append(f"train {job.student}")
        if job.taught:
            words += ["--teacher", str(options.out / TEACHER_FOLDER / TEACHER_FILE)]
            needs.append(f"train {TEACHER_FOLDER}")
        if job.stage != "stage2" and not options.from_scratch:
            width = 48 if job.stage == "teacher" else 32
            words += ["--init", str(imagenet_file(options, width))]
        elif job.stage != "stage2":
            words.append("--from-scratch")
        settings = ["--resume", "--accelerator", options.accelerator]
        settings += ["--threads", str(options.threads)] if options.threads else []
        settings += ["--cache", str(options.cache)] if options.cache is not None else []
        self.steps.append(
            Step(
                f"train {job.folder}", "train", tuple(words), options.out / job.checkpoint,
                tuple(settings), tuple(needs), job.recipe, job.stage, job.taught,
            )
        )  # fmt: skip
        return self.steps[-1].name

    def _export_and_measure(self, name: str, checkpoint: Path, after: str) -> str:
        """The graph of a checkpoint, flip test inside, and its figures; gives the last step."""
        options = self.options
        name = name.replace("/", "-")
        graph = options.out / GRAPHS / f"{name}.onnx"
        words = ["onnx", "--checkpoint", str(checkpoint), "-o", str(graph), "--flip-test"]
        if options.miniature:  # flat bins, whose peaks rounding moves
            words += ["--min-confidence", "0", "--max-drift", "1000"]
        else:  # peaks of SimCC's bins, not yet calibrated
            words += ["--min-confidence", SURE]
        export = Step(
            f"export {name}", "export", tuple(words), graph, needs=(after,), kind="export"
        )
        source, root = measured_source(self.recipe), options.data_root
        report = options.out / REPORTS / f"{name}.json"
        words = ["--dataset", str(root / source.annotations), "--images", str(root / source.images)]
        words += ["--model", str(graph), "--preset", "paper", "--boxes", boxes_of(options)]
        words += ["--repeats", "0", "--json", str(report)]
        settings = ["--resume", "--work", str(options.out / "work")]
        settings += ["--threads", str(options.threads)] if options.threads else []
        settings += ["--device", "cpu"] if options.accelerator == "cpu" else []
        measure = Step(
            f"measure {name}", "bench", tuple(words), report, tuple(settings), (export.name,),
            kind="measure",
        )  # fmt: skip
        self.steps += [export, measure]
        return measure.name

    def _training(self, name: str) -> tuple[str, ...]:
        """The training steps that a step needs, itself included, the first one first."""
        (step,) = (step for step in self.steps if step.name == name)
        above = [each for need in step.needs for each in self._training(need)]
        own = [name] if step.kind in TRAINS else []
        return tuple(dict.fromkeys([*above, *own]))


def _width(path: Path) -> int:
    """32 or 48, by a checkpoint's name; what is in the file is told when it is converted."""
    for width in OFFICIAL:
        if f"w{width}" in path.stem.lower():
            return width
    raise TrainingError(
        f"{path}: its name says neither w32 nor w48; name it as published, such as "
        f"pose_hrnet_w32_256x192.pth"
    )
