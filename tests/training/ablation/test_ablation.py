"""Schemes, their shared runs, and the ablation whole at miniature size."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk.errors import TrainingError
from cfpose_training import cli
from cfpose_training.ablation.jobs import Starts, check_starts, plan
from cfpose_training.ablation.run import run_ablation
from cfpose_training.ablation.schemes import SCHEMES, scheme, seeded
from cfpose_training.ablation.table import Row, markdown, mean_and_deviation
from cfpose_training.checkpoints.files import load_pose
from cfpose_training.config import AugmentConfig, Recipe, load_recipe, teacher_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.nets.efficientnet import LiteConfig
from cfpose_training.nets.pose_net import RefinedPoseNet
from cfpose_training.pose.evaluation import DevelopmentSet
from cfpose_training.pose.train import REFINED_FILE, TEACHER_FILE, pose_spec
from cfpose_training.run.loop import RunOptions

TEACHER = """
[teacher]
name = "wide"
hrnet = { width = 8, stem = 4, bottlenecks = 1, modules = [1, 1, 1], blocks = 1 }

[distill]
beta = 0.02
"""


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    text = tiny_recipe.read_text().replace('kind = "gaussian"', 'kind = "smoothed"')
    tiny_recipe.write_text(text + TEACHER)
    return load_recipe(tiny_recipe)


def differences(a: Any, b: Any, prefix: str = "") -> dict[str, tuple[object, object]]:
    """Dotted name of every leaf field in which two dataclasses differ."""
    found: dict[str, tuple[object, object]] = {}
    for field in dataclasses.fields(a):
        mine, theirs = getattr(a, field.name), getattr(b, field.name)
        if dataclasses.is_dataclass(mine) and type(mine) is type(theirs):
            found |= differences(mine, theirs, f"{prefix}{field.name}.")
        elif mine != theirs:
            found[prefix + field.name] = (mine, theirs)
    return found


def test_schemes_differ_as_table_iv_says_and_in_nothing_else(recipe: Recipe) -> None:
    fea, l1, cst, gcn = "distill.kd_fea", "distill.kd_l1", "distill.kd_cst", "stage2.gcn"
    expected: list[dict[str, tuple[object, object]]] = [
        {gcn: ("off", "gt")},
        {gcn: ("gt", "off"), fea: (False, True)},
        {l1: (False, True)},
        {cst: (False, True)},
        dict.fromkeys((fea, l1, cst), (True, False)) | {gcn: ("off", "teacher")},
        dict.fromkeys((fea, l1, cst), (False, True)),
    ]
    names = ["baseline", "1", "2", "3", "4", "5", "6"]
    assert list(SCHEMES) == names
    found = [differences(scheme(recipe, a), scheme(recipe, b)) for a, b in pairwise(names)]
    assert found == expected
    assert scheme(recipe, "3").distill.beta == 0.02
    with pytest.raises(TrainingError, match=r"'7'.*baseline, 1, 2"):
        scheme(recipe, "7")


def test_a_seed_changes_the_seeds_alone(recipe: Recipe) -> None:
    changed = differences(recipe, seeded(recipe, 5))
    assert changed == {"stage1.seed": (2025, 5), "stage2.optim.seed": (2025, 5)}


def test_the_teachers_recipe_is_the_students_with_its_network(recipe: Recipe) -> None:
    on = scheme(recipe, "6")
    swapped = teacher_recipe(on)
    assert not swapped.distill.active
    changed = {key for key in differences(on, swapped) if not key.startswith("distill.")}
    assert changed == {"pose.name", "pose.hrnet.width"}
    with pytest.raises(TrainingError, match=r"no \[teacher\] table"):
        teacher_recipe(dataclasses.replace(recipe, teacher=None))


def test_equal_runs_are_trained_once(recipe: Recipe) -> None:
    jobs, trials = plan(recipe, list(SCHEMES), [1, 2], own_teacher=True)
    assert [job.folder for job in jobs if job.folder.startswith("seed2")] == [
        "seed2/stage1-labels",
        "seed2/stage2-gt-on-labels",
        "seed2/stage1-fea",
        "seed2/stage1-fea-l1",
        "seed2/stage1-fea-l1-cst",
        "seed2/stage2-teacher-on-labels",
        "seed2/stage2-teacher-on-fea-l1-cst",
    ]
    assert len(jobs) == 15
    assert jobs[0].stage == "teacher"
    assert len(trials) == 14
    seen: set[str] = set()
    for job in jobs:  # what a run reads has been written before
        assert not job.student or job.student in seen
        seen.add(job.folder)
    assert [t.job.folder for t in trials[:2]] == [
        "seed1/stage1-labels",
        "seed1/stage2-gt-on-labels",
    ]
    without, _ = plan(recipe, ["baseline", "1"], [1], own_teacher=True)
    assert [job.stage for job in without] == ["stage1", "stage2"]
    given, _ = plan(dataclasses.replace(recipe, teacher=None), ["6"], [1], own_teacher=False)
    assert [job.stage for job in given] == ["stage1", "stage2"]
    with pytest.raises(TrainingError, match="nothing to run"):
        plan(recipe, [], [1], own_teacher=True)


def test_several_processes_are_refused_before_anything_is_written(
    recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    data = DataOptions(tiny_root, tmp_path / "cache")
    options = RunOptions(tmp_path / "out", accelerator="cpu", devices=2)
    with pytest.raises(TrainingError, match=r"is one process, got 2 devices.*--jobs 2"):
        run_ablation(recipe, ["baseline"], [1], data, options)
    assert not (tmp_path / "out").exists()


def test_an_own_teacher_with_frozen_blocks_is_refused(recipe: Recipe) -> None:
    assert recipe.teacher is not None
    lite = LiteConfig(neck=(12, 8, 8), frozen=3, body="lite2")
    frozen = dataclasses.replace(
        recipe, teacher=dataclasses.replace(recipe.teacher, hrnet=None, lite=lite)
    )
    jobs, _ = plan(frozen, ["6"], [1], own_teacher=True)
    with pytest.raises(TrainingError, match=r"wide keeps its first 3 blocks.*give --teacher-init"):
        check_starts(frozen, jobs, Starts())
    check_starts(frozen, jobs, Starts(teacher_init=Path("lite2.pth")))
    for given in (False, True):  # a teacher's file is given, or none is needed
        jobs, _ = plan(frozen, ["1"] if given else ["6"], [1], own_teacher=given)
        check_starts(frozen, jobs, Starts())


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def with_a_teacher_worth_hearing(recipe: Recipe) -> Recipe:
    """Every epoch sees the same crops, and the teacher has learnt them: then each term can fall.

    The terms are logged before their factors and gamma, so gamma's decay is not in them. A teacher
    that knows nothing is no help: the student moves to the labels, hence away from it.
    """
    assert recipe.teacher is not None
    still = AugmentConfig(flip_p=0, zoom_sigma=0, rotation_p=0, half_body_p=0)
    stage1 = dataclasses.replace(recipe.stage1, epochs=10)
    teacher = dataclasses.replace(
        recipe.teacher, head_init="marginals", optim=dataclasses.replace(stage1, epochs=30)
    )
    optim = dataclasses.replace(recipe.stage2.optim, epochs=8, lr=3e-3)
    return dataclasses.replace(
        recipe,
        augment=still,
        pose=dataclasses.replace(recipe.pose, head_init="marginals"),
        teacher=teacher,
        distill=dataclasses.replace(recipe.distill, beta=0.1),
        stage1=stage1,
        stage2=dataclasses.replace(recipe.stage2, optim=optim),
    )


def check_the_refiner_moves_joints_to_its_target(recipe: Recipe, root: Path, out: Path) -> None:
    """On the training photos: refined joints are nearer to the labels, or to the teacher's."""
    source = dataclasses.replace(recipe.sources[0], holdout_every=1)
    seen = json.loads((root / source.annotations).read_text())
    kept = [image for image in seen["images"] if image["id"] % 5]  # recipe: holdout_every = 5
    people = [person for person in seen["annotations"] if person["image_id"] % 5]
    (root / "seen.json").write_text(json.dumps({**seen, "images": kept, "annotations": people}))
    source = dataclasses.replace(source, annotations="seen.json")
    dev = DevelopmentSet(source, root, pose_spec(recipe), out / "seen-cache")
    assert len(dev.people) == 10
    taught = dev.predict(load_pose(out / "teacher" / TEACHER_FILE)[0]).xy
    labels = dev.people.joints[..., :2]
    runs = sorted(out.rglob(REFINED_FILE))
    assert len(runs) == 3
    for path in runs:
        network, _ = load_pose(path)
        assert isinstance(network, RefinedPoseNet)
        target = taught if "teacher" in path.parent.name else labels
        coarse, refined = (
            np.linalg.norm(dev.predict(net).xy - target, axis=2).mean()
            for net in (network.pose, network)
        )
        assert refined < 0.9 * coarse, path.parent.name


def test_the_whole_table_runs_and_resumes(
    recipe: Recipe, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_a_teacher_worth_hearing(recipe)
    data = DataOptions(tiny_root, tmp_path / "cache")
    out = tmp_path / "out"

    def run(schemes: Iterable[str], **options: Any) -> list[Row] | None:
        return run_ablation(
            recipe, list(schemes), [1], data, RunOptions(out, accelerator="cpu", **options)
        )

    assert run(SCHEMES, max_minutes=0) is None
    assert not (out / "ablation.csv").exists()
    with pytest.raises(TrainingError, match="--resume"):
        run(SCHEMES)
    rows = run(SCHEMES, resume=True)
    assert rows is not None
    for row, (name, switches) in zip(rows, SCHEMES.items(), strict=True):
        assert (row.scheme, row.kd_fea, row.kd_l1, row.kd_cst, row.gcn) == (name, *switches)
        assert not row.kd_logit
        assert row.AP_easy is row.AP_medium is row.AP_hard is None
        if row.gcn != "off":
            assert row.error < row.coarse_error
        assert row.loss_last < row.loss_first
    assert [row["scheme"] for row in read(out / "ablation.csv")] == list(SCHEMES)
    assert "| 6 | yes | yes | yes | teacher | 1 |" in (out / "ablation.md").read_text()
    picture = cv2.imread(str(out / "ablation.png"))
    assert picture is not None
    assert picture.std() > 5  # something is drawn
    logs = {log.parent.name: read(log) for log in out.rglob("log.csv")}
    assert len(logs) == 8
    seen = set()
    for job, log in logs.items():
        terms = {"loss", "kl", "fea", "l1", "cst", "l1_teacher"} & set(log[0])
        rising = [name for name in terms if float(log[-1][name]) > 0.97 * float(log[0][name])]
        assert rising == [], job
        seen |= terms
    assert len(seen) == 6
    check_the_refiner_moves_joints_to_its_target(recipe, tiny_root, out)
    # what is done is not done again
    for function in ("train_teacher", "train_stage1", "train_stage2"):
        monkeypatch.setattr(f"cfpose_training.ablation.jobs.{function}", pytest.fail)
    assert run(SCHEMES, resume=True) == rows
    other = dataclasses.replace(recipe, trained_on=("others",))
    with pytest.raises(TrainingError, match="another recipe or teacher"):
        run_ablation(other, ["1"], [1], data, RunOptions(out, resume=True, accelerator="cpu"))


def test_without_held_out_photos_there_is_nothing_to_measure(
    recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    sources = tuple(dataclasses.replace(source, holdout_every=0) for source in recipe.sources)
    blind = dataclasses.replace(recipe, sources=sources)
    data = DataOptions(tiny_root, tmp_path / "cache")
    with pytest.raises(TrainingError, match="holdout_every"):
        run_ablation(blind, ["1"], [1], data, RunOptions(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_table_gives_mean_and_deviation_over_seeds() -> None:
    rows = [
        Row("1", seed, False, False, False, False, "gt", ap, ap, ap, 10.0 * seed, 0.0, 2.0, 1.0)
        for seed, ap in ((1, 0.5), (2, 0.6), (3, 0.7))
    ]
    line = markdown([*rows, dataclasses.replace(rows[0], scheme="2")]).splitlines()[2:]
    spread = "60.00 ± 10.00"
    assert line == [
        f"| 1 | no | no | no | gt | 3 | {spread} | {spread} | {spread} | 20.00 ± 10.00 |",
        "| 2 | no | no | no | gt | 1 | 50.00 | 50.00 | 50.00 | 10.00 |",
    ]
    levels = {"AP_easy": 0.8, "AP_medium": None, "AP_hard": 0.25}
    crowd = [dataclasses.replace(row, kd_logit=True, **levels) for row in rows]  # type: ignore[arg-type]
    title, _, line_of_1 = markdown(crowd).splitlines()
    assert title == (
        "| scheme | kd_fea | kd_l1 | kd_cst | kd_logit | gcn | seeds | AP | AP50 | AP75 "
        "| AP easy | AP hard | error % |"
    )
    assert line_of_1 == (
        f"| 1 | no | no | no | yes | gt | 3 | {spread} | {spread} | {spread} "
        f"| 80.00 ± 0.00 | 25.00 ± 0.00 | 20.00 ± 10.00 |"
    )
    assert mean_and_deviation([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, (7 / 3) ** 0.5))


@pytest.mark.parametrize("command", ["teacher", "stage1", "stage2", "finder", "ablation"])
def test_a_dry_run_says_what_would_run_and_writes_nothing(
    recipe: Recipe,
    tiny_recipe: Path,
    tiny_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    needs = {"stage2": ["--student", "s.safetensors"], "finder": ["--labeller", "y.onnx"]}
    arguments = [command, "--recipe", str(tiny_recipe), "--data-root", str(tiny_root), "--dry-run"]
    out = tmp_path / "out"
    assert cli.main([*arguments, "--out", str(out), *needs.get(command, [])]) == 0
    said = capsys.readouterr().out
    expected = {
        "teacher": ["teacher of wide: 2 epochs", "teacher.safetensors"],
        "stage1": ["stage1 of tiny: 2 epochs", "student.safetensors"],
        "stage2": ["student: s.safetensors (missing)", "refined.safetensors"],
        "finder": ["finder of tiny-finder", "labeller: y.onnx (missing)"],
        "ablation": ["teacher/teacher.safetensors", "seed2/stage2-gt-on-labels"],
    }[command]
    assert [part for part in expected if part not in said] == []
    assert not out.exists()
