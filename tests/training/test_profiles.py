"""The recipes: what each profile says, and that recipes mean what they meant."""

from __future__ import annotations

import csv
import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.skeleton import CROWDPOSE_14, Skeleton
from cfpose_training.ablation.schemes import SCHEMES, scheme
from cfpose_training.config import Recipe, load_recipe, teacher_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.pose.train import pose_spec, train_stage1, train_stage2, train_teacher
from cfpose_training.run.loop import RunOptions
from tests.training.ablation.test_ablation import differences

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"


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
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        pairs = [without_later_options(n, b) for n, b in zip(now, before, strict=True)]
        return [cut for cut, _ in pairs], {k: v for _, more in pairs for k, v in more.items()}
    return now, {}


@pytest.mark.parametrize("name", ["cfpose-s", "paper-coco", "paper-crowdpose"])
def test_recipes_mean_what_they_meant(name: str) -> None:
    """What each recipe was read as before later options came; those are off in it.

    A recipe that is changed on purpose needs its new reading in golden/recipes.json.
    """
    before = json.loads((Path(__file__).parent / "golden" / "recipes.json").read_text())[name]
    read = dataclasses.asdict(load_recipe(RECIPES / f"{name}.toml"))
    del read["joints"], read["fit"]  # what skeleton names; of another command
    cut, later = without_later_options(json.loads(json.dumps(read)), before)
    assert cut == before
    off = {
        "dropout_p": 0.0, "dropout_side": [0.2, 0.4], "softmax_beta": 1.0, "cosine_from": 0.0,
        "mild_epochs": 0, "alpha_auto": 0.0, "teacher_flip": False,
        "teacher_confidence": False, "mild_augment": None,
        "lite": None, "files": "*", "contrast": 0.0, "brightness": 0.0,
        "body": "lite0", "box_sigma": 0.0, "teacher_bf16": False, "mosaic_p": 0.0,
        "deploy_size_wh": [0, 0], "evidence": "peak", "box_grid": 0, "oks_window": 0.0,
        "spread_temperature": 1.0, "spread_isotropy": 0.0,
        "movenet": None, "head": "simcc", "turn_p": 0.0, "started_from": [],
        "accumulate": 1, "channels_last": True, "compile": False, "checkpointing": False,
        "start": "any", "arithmetic": "cfpose", "loss": "l1",
    }  # fmt: skip
    assert {key.rpartition(".")[2] for key in later} <= set(off)
    assert {
        key: value for key, value in later.items() if value != off[key.rpartition(".")[2]]
    } == {}


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("[distill]\nalpha_auto = 'yes'", "distill.alpha_auto"),
        ("[labels]\nsoftmax_beta = 0.0", "softmax_beta is 0"),
        ("[mild_augment]\nbox_sigma = 0.3", "box_sigma is 0.3"),
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


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("epochs = 2", "epoch = 2", r"stage1\.epoch is no option; did you mean epochs\?"),
        ("[stage1]", "[stagel]", r"stagel is no option; did you mean stage"),
        ("width = 4", "widht = 4", r"pose\.hrnet\.widht is no option; did you mean width\?"),
        ('images = "i"', 'photos = "i"', r"sources\[0\]\.photos is no option; expected .*images"),
        (
            "epochs = 2",
            'epochs = 2\noptimiser = "sgd"',
            "optimiser is 'sgd', expected one of 'adam'",
        ),
        ("[[sources]]", "[sources]", r"sources is .*, expected \[\[sources\]\], a table each"),
        ("hrnet =", "size_wh = 3\nhrnet =", r"pose\.size_wh is 3, expected a list"),
        ("epochs = 2", 'epochs = "two"', r"stage1\.epochs"),
    ],
)
def test_a_misspelt_option_is_named_with_its_place(
    tmp_path: Path, right: str, wrong: str, message: str
) -> None:
    text = (
        '[pose]\nname = "t"\nhrnet = { width = 4 }\n[stage1]\nepochs = 2\n[stage2.optim]\n'
        'epochs = 2\n[[sources]]\nname = "s"\nannotations = "a"\nimages = "i"\n'
    )
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    load_recipe(path)
    path.write_text(text.replace(right, wrong, 1))
    with pytest.raises(TrainingError, match=rf"recipe\.toml is not usable: .*{message}"):
        load_recipe(path)


def test_the_paper_profile_is_the_papers() -> None:
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
    changed -= {f"joints.{field}" for field in Skeleton.__dataclass_fields__}
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


def in_miniature(name: str, tiny: Recipe) -> Recipe:
    """A profile with every switch as it is, on tiny networks and data, a few steps long."""
    recipe = load_recipe(RECIPES / f"{name}.toml")
    assert recipe.teacher is not None
    run: dict[str, Any] = {"epochs": 4, "batch_size": 4, "workers": 0, "mild_epochs": 2}
    stage2 = dataclasses.replace(
        recipe.stage2,
        node_channels=8,
        joint_channels=(8, 8, 8),
        optim=dataclasses.replace(recipe.stage2.optim, **run),
    )
    return dataclasses.replace(
        recipe,
        pose=dataclasses.replace(recipe.pose, hrnet=tiny.pose.hrnet, size_wh=tiny.pose.size_wh),
        teacher=dataclasses.replace(
            recipe.teacher, hrnet=dataclasses.replace(tiny.pose.hrnet, width=8)
        ),
        distill=dataclasses.replace(recipe.distill, alpha_auto=0.3),
        stage1=dataclasses.replace(recipe.stage1, **run, warmup_steps=3),
        stage2=stage2,
        sources=tuple(dataclasses.replace(source, repeat=1) for source in tiny.sources),
    )


def test_the_improved_profile_runs_in_miniature(
    tiny_recipe: Path, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher, student and refiner with every switch on, in bfloat16 as the profile asks."""
    monkeypatch.setattr("cfpose_training.stages.stage1.ALPHA_BATCHES", 2)
    recipe = in_miniature("improved-coco", load_recipe(tiny_recipe))
    assert recipe.stage1.precision == "bf16-mixed"
    data = DataOptions(tiny_root, tmp_path / "cache")

    def run(name: str) -> RunOptions:
        return RunOptions(tmp_path / name, accelerator="cpu")

    def log(name: str) -> list[dict[str, str]]:
        with open(tmp_path / name / "log.csv", newline="") as file:
            return list(csv.DictReader(file))

    teacher = train_teacher(recipe, data, run("teacher"))
    assert teacher is not None
    student = train_stage1(recipe, data, run("s1"), teacher)
    assert student is not None
    rows = log("s1")
    assert {"kl", "fea", "l1", "cst", "logit", "alpha", "dev_AP"} <= rows[0].keys()
    alphas = [float(row["alpha"]) for row in rows]
    assert alphas[1] == alphas[2] == alphas[3]  # found in epoch 1, and fixed
    assert alphas[3] != pytest.approx(recipe.distill.alpha, rel=1e-2)
    assert train_stage2(recipe, student, data, run("s2"), teacher) is not None
    assert {"l1", "l1_teacher"} <= log("s2")[0].keys()
