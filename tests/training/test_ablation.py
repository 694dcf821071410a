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
from cfpose_sdk.skeleton import CROWDPOSE_14
from cfpose_training import cli
from cfpose_training.ablation import plan, run_ablation
from cfpose_training.ablation_table import Row, markdown, mean_and_deviation
from cfpose_training.checkpoint import load_pose
from cfpose_training.config import AugmentConfig, Recipe, load_recipe
from cfpose_training.data import DataOptions
from cfpose_training.evaluation import DevelopmentSet
from cfpose_training.loop import RunOptions
from cfpose_training.nets.pose_net import RefinedPoseNet
from cfpose_training.pose_training import REFINED_FILE, TEACHER_FILE, pose_spec
from cfpose_training.schemes import SCHEMES, scheme, seeded, teacher_recipe

TEACHER = """
[teacher]
name = "wide"
hrnet = { width = 8, stem = 4, bottlenecks = 1, modules = [1, 1, 1], blocks = 1 }

[distill]
beta = 0.02
"""
RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"


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
        monkeypatch.setattr(f"cfpose_training.ablation.{function}", pytest.fail)
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


@pytest.mark.parametrize("name", ["paper-coco", "paper-crowdpose", "improved-coco"])
def test_the_profiles_are_recipes_with_a_teacher_and_a_test_set(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.toml")
    crowdpose = name == "paper-crowdpose"
    assert (pose_spec(recipe).skeleton == CROWDPOSE_14) == crowdpose
    assert teacher_recipe(recipe).pose.hrnet.width == 48
    assert recipe.pose.hrnet.width == 32
    assert scheme(recipe, "6").distill == recipe.distill
    assert (scheme(recipe, "6") == recipe) == name.startswith("paper")  # improved mixes targets
    assert [source.holdout_every for source in recipe.sources] == [0, 1]


@pytest.mark.parametrize(
    ("name", "bins_are_distilled"),
    [("paper-coco", False), ("paper-crowdpose", False), ("improved-coco", True)],
)
def test_bins_are_distilled_in_no_scheme_of_the_paper_and_in_all_of_the_improved(
    name: str, bins_are_distilled: bool
) -> None:
    """Table IV has no such column: one ablation has it on everywhere, or nowhere."""
    recipe = load_recipe(RECIPES / f"{name}.toml")
    found = {scheme(recipe, s).distill.kd_logit for s in SCHEMES}
    assert found == {bins_are_distilled}
    columns = {"distill.kd_fea", "distill.kd_l1", "distill.kd_cst", "stage2.gcn"}
    for a, b in pairwise(SCHEMES):
        changed = set(differences(scheme(recipe, a), scheme(recipe, b)))
        assert changed
        assert changed <= columns
    assert scheme(recipe, "baseline").distill.active == bins_are_distilled


def without_later_options(now: Any, before: Any) -> tuple[Any, dict[str, Any]]:
    """`now` cut down to the keys of `before`, and the values of the keys that `before` lacks."""
    if isinstance(now, dict) and isinstance(before, dict):
        cut, later = {}, {key: now[key] for key in now.keys() - before.keys()}
        for key in now.keys() & before.keys():
            cut[key], more = without_later_options(now[key], before[key])
            later |= {f"{key}.{name}": value for name, value in more.items()}
        return cut, later
    return now, {}


@pytest.mark.parametrize("name", ["cfpose-s", "paper-coco", "paper-crowdpose"])
def test_recipes_mean_what_they_meant(name: str) -> None:
    """What each recipe was read as before later options came; those are off in it.

    A recipe that is changed on purpose needs its new reading in golden/recipes.json.
    """
    before = json.loads((Path(__file__).parent / "golden" / "recipes.json").read_text())[name]
    read = dataclasses.asdict(load_recipe(RECIPES / f"{name}.toml"))
    cut, later = without_later_options(json.loads(json.dumps(read)), before)
    assert cut == before
    off = {
        "dropout_p": 0.0, "dropout_side": [0.2, 0.4], "softmax_beta": 1.0, "cosine_from": 0.0,
        "mild_epochs": 0, "alpha_auto": 0.0, "alpha_auto_batches": 20, "teacher_flip": False,
        "teacher_confidence": False, "mild_augment": None,
    }  # fmt: skip
    assert {key.rpartition(".")[2] for key in later} == set(off)
    assert {
        key: value for key, value in later.items() if value != off[key.rpartition(".")[2]]
    } == {}


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("[distill]\nalpha_auto = 'yes'", "distill.alpha_auto"),
        ("[labels]\nsoftmax_beta = 0.0", "softmax_beta is 0"),
        ("[labels]\nsigma_bins = [1.0, 2.0, 3.0]", "sigma_bins"),
        ("[mild_augment]\ndropout_side = [0.5, 0.4]", r"dropout_side is \(0.5, 0.4\)"),
        (
            "[stage1]\nepochs = 2\nmild_epochs = 1",
            r"mild_epochs is 1; give \[mild_augment\]",
        ),
        ("[stage1]\nepochs = 2\ncosine_from = 1.0", "stage1.cosine_from is 1.0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    tmp_path: Path, addition: str, message: str
) -> None:
    tables = {
        "[pose]": 'name = "t"\nhrnet = { width = 4 }',
        "[stage1]": "epochs = 2",
        "[stage2.optim]": "epochs = 2",
        "[[sources]]": 'name = "s"\nannotations = "a"\nimages = "i"',
    }
    tables.pop(addition.split("\n")[0], None)
    text = "\n".join(f"{title}\n{body}" for title, body in tables.items())
    path = tmp_path / "recipe.toml"
    path.write_text(f"{text}\n")
    if addition.startswith("[stage1]"):
        path.write_text(f"{text}\n[stage1]\nepochs = 2\n")
    load_recipe(path)
    path.write_text(f"{text}\n{addition}\n")
    with pytest.raises(TrainingError, match=rf"recipe\.toml is not usable.*{message}"):
        load_recipe(path)


def test_the_paper_profile_is_the_papers(recipe: Recipe) -> None:
    coco, crowdpose = (load_recipe(RECIPES / f"paper-{n}.toml") for n in ("coco", "crowdpose"))
    assert (coco.distill.alpha, coco.distill.beta, coco.distill.kd_logit) == (5e-5, 0.1, False)
    assert (coco.labels.kind, coco.labels.epsilon, coco.pose.decode) == ("smoothed", 0.1, "argmax")
    assert (coco.pose.size_wh, coco.pose.split_ratio) == ((192, 256), 2.0)
    stage1, stage2 = coco.stage1, coco.stage2.optim
    assert (stage1.epochs, stage1.batch_size, stage1.lr) == (210, 128, 1e-3)
    assert (stage1.optimiser, stage1.schedule, stage1.milestones) == (
        "adam",
        "multistep",
        (170, 200),
    )
    assert (stage2.epochs, stage2.schedule, stage2.clip_norm) == (30, "cosine", 1.0)
    assert coco.stage2.output_weights == (0.3, 0.5, 1.0)
    assert (coco.stage2.node_channels, coco.stage2.joint_channels) == (128, (256, 128, 128))
    assert (coco.stage2.output, coco.stage2.refine, coco.stage2.init_noise_px) == (
        "absolute",
        "all",
        0,
    )
    changed = set(differences(coco, crowdpose))
    assert changed <= {
        "pose.name", "teacher.name", "skeleton", "sources", "trained_on", "license",
    }  # fmt: skip


def test_the_improved_profile_turns_the_methods_switches() -> None:
    paper, improved = (load_recipe(RECIPES / f"{n}-coco.toml") for n in ("paper", "improved"))
    changed = set(differences(paper, improved))
    assert {
        "labels.kind", "stage1.optimiser", "stage1.ema_decay", "stage1.schedule",
        "augment.zoom_sigma", "distill.kd_logit", "distill.cst_form", "pose.decode",
        "stage2.output", "stage2.gcn", "stage2.init_noise_px",
    } <= changed  # fmt: skip
    # RTMPose's recipe, piece by piece
    labels, stage1, augment = improved.labels, improved.stage1, improved.augment
    assert (labels.kind, labels.sigma_xy, labels.softmax_beta) == (
        "gaussian_softmax",
        (4.9, 5.66),
        10.0,
    )
    assert (stage1.optimiser, stage1.lr, stage1.weight_decay) == ("adamw", 5e-4, 0.05)
    assert (stage1.warmup_steps, stage1.schedule, stage1.cosine_from) == (1000, "cosine", 0.5)
    assert (stage1.ema_decay, stage1.epochs, stage1.mild_epochs) == (0.9998, 210, 30)
    assert (augment.zoom_sigma, 2 * augment.rotation_sigma_deg) == (0.4, 80)
    assert (augment.dropout_p, augment.dropout_side) == (1.0, (0.2, 0.4))
    mild = improved.mild_augment
    assert mild is not None
    assert (mild.zoom_sigma, 2 * mild.rotation_sigma_deg, mild.dropout_p) == (0.25, 60, 0.5)
    assert improved.distill.teacher_flip
    assert improved.stage2.teacher_flip
    assert improved.pose.hrnet == paper.pose.hrnet  # the same cost
    assert improved.pose.size_wh == paper.pose.size_wh
