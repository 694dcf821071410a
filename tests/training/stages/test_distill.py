"""Stages with a teacher: it stays what it is, the losses fall, the wrong one is refused."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.skeleton import CROWDPOSE_14
from cfpose_training.checkpoints.files import load_pose, save_pose
from cfpose_training.config import DistillConfig, Recipe, load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.losses import simcc_loss
from cfpose_training.nets.pose_net import PoseNet
from cfpose_training.pose.train import pose_spec, train_stage1, train_stage2, train_teacher
from cfpose_training.run.loop import RunOptions
from cfpose_training.stages.stage1 import DistillStage
from tests.training.distill_cases import EVERYTHING, WIDE, batch, pose_net, refined_network, taught


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    text = tiny_recipe.read_text().replace('kind = "gaussian"', 'kind = "smoothed"')
    tiny_recipe.write_text(
        text + "\n[teacher]\nname = 'wide'\nhrnet = { width = 8, stem = 4, "
        "bottlenecks = 1, modules = [1, 1, 1], blocks = 1 }\n"
    )
    return load_recipe(tiny_recipe)


def distill_stage(recipe: Recipe, config: DistillConfig = EVERYTHING) -> DistillStage:
    spec = pose_spec(recipe)
    teacher, student = pose_net(recipe, WIDE, 1), pose_net(recipe, recipe.pose.hrnet, 2)
    weights = torch.ones(len(spec.skeleton.limbs))
    return DistillStage(student, spec, recipe.labels, config, teacher, spec, weights)


def test_every_loss_falls_on_a_batch(recipe: Recipe) -> None:
    data, spec = batch(recipe), pose_spec(recipe)
    student = pose_net(recipe, recipe.pose.hrnet, 2)
    stage = DistillStage(
        student, spec, recipe.labels, EVERYTHING, taught(recipe, data), spec,
        torch.ones(len(spec.skeleton.limbs)),
    ).train()  # fmt: skip
    optimiser = torch.optim.AdamW(stage.trainable.parameters(), lr=1e-2)
    history = []
    for _ in range(70):
        losses = stage(data)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        history.append({name: value.item() for name, value in losses.items()})
    assert set(history[0]) == {"loss", "kl", "fea", "l1", "cst", "logit"}
    for name, first in history[0].items():
        # alpha leaves the feature loss a small voice in the total
        assert history[-1][name] < (0.9 if name == "fea" else 0.4) * first, name


def test_the_teacher_stays_bit_equal(recipe: Recipe) -> None:
    stage = distill_stage(recipe)
    before = copy.deepcopy(stage.teacher.state_dict())
    optimiser = torch.optim.Adam([p for p in stage.parameters() if p.requires_grad], lr=1e-2)
    stage.train()
    assert not any(module.training for module in stage.teacher.modules())
    assert stage.trainable.training
    for _ in range(3):
        stage(batch(recipe))["loss"].backward()
        optimiser.step()
    assert all(parameter.grad is None for parameter in stage.teacher.parameters())
    after = stage.teacher.state_dict()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert not {id(p) for p in stage.trainable.parameters()} & {
        id(p) for p in stage.teacher.parameters()
    }


def test_the_total_is_the_formula(recipe: Recipe) -> None:
    config = dataclasses.replace(EVERYTHING, alpha=2e-4)
    stage = distill_stage(recipe, config).eval()
    for module in stage.modules():
        if isinstance(module, torch.nn.Conv2d):  # or both would say the middle of the crop
            torch.nn.init.kaiming_normal_(module.weight)
    for epoch in (1, 3, 4):
        stage.set_epoch(epoch, 4)
        value = {name: loss.item() for name, loss in stage(batch(recipe)).items()}
        assert min(value[name] for name in ("fea", "l1", "cst", "logit")) > 10
        gamma = 1 - (epoch - 1) / 4
        taught_part = 2e-4 * value["fea"] + 0.1 * (value["l1"] + value["cst"])
        taught_part += 0.1 * value["logit"]
        assert value["loss"] == pytest.approx(value["kl"] + gamma * taught_part, rel=1e-5)


@pytest.mark.parametrize("name", ["kd_fea", "kd_l1", "kd_cst", "kd_logit"])
def test_a_switch_brings_its_loss_alone(recipe: Recipe, name: str) -> None:
    stage = distill_stage(recipe, DistillConfig(**{name: True}))  # type: ignore[arg-type]
    assert set(stage(batch(recipe))) == {"loss", "kl", name.removeprefix("kd_")}
    assert (stage.trainable.align is None) == (name != "kd_fea")


def test_the_align_layer_has_the_papers_size_and_is_trained(recipe: Recipe) -> None:
    stage = distill_stage(recipe)
    align = stage.trainable.align
    assert align is not None
    assert align.weight.shape == (8, 4, 1, 1)
    stage(batch(recipe))["loss"].backward()
    assert align.weight.grad is not None
    assert align.weight.grad.any()
    with torch.device("meta"):
        papers = torch.nn.Conv2d(32, 48, 1)
    assert sum(p.numel() for p in papers.parameters()) == 1584


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("skeleton", CROWDPOSE_14),
        ("size_wh", (48, 64)),
        ("split_ratio", 3.0),
        ("mean_rgb", (0.5, 0.5, 0.5)),
    ],
)
def test_a_teacher_of_another_kind_is_refused(
    recipe: Recipe, tmp_path: Path, field: str, value: object
) -> None:
    spec = pose_spec(recipe)
    other = dataclasses.replace(spec, name="other", **{field: value})  # type: ignore[arg-type]
    path = tmp_path / "other.safetensors"
    save_pose(path, PoseNet(WIDE, other), other)
    on = dataclasses.replace(recipe, distill=EVERYTHING)
    root, run = tmp_path / "data", RunOptions(tmp_path / "s1", accelerator="cpu")
    with pytest.raises(TrainingError, match=f"teacher other has {field}"):
        train_stage1(on, DataOptions(root, tmp_path / "cache"), run, path)


def test_a_refined_teacher_is_refused(recipe: Recipe, tiny_root: Path, tmp_path: Path) -> None:
    spec = pose_spec(recipe)
    path = tmp_path / "refined.safetensors"
    save_pose(path, refined_network(recipe), spec)
    on = dataclasses.replace(recipe, distill=EVERYTHING)
    run = RunOptions(tmp_path / "s1", accelerator="cpu")
    with pytest.raises(TrainingError, match="has a refiner"):
        train_stage1(on, DataOptions(tiny_root, tmp_path / "cache"), run, path)


def test_a_teacher_goes_with_what_it_teaches(recipe: Recipe, tmp_path: Path) -> None:
    data, run = DataOptions(tmp_path, tmp_path), RunOptions(tmp_path / "run", accelerator="cpu")
    on = dataclasses.replace(recipe, distill=EVERYTHING)
    with pytest.raises(TrainingError, match="give the teacher's file"):
        train_stage1(on, data, run)
    with pytest.raises(TrainingError, match="nothing to teach"):
        train_stage1(recipe, data, run, tmp_path / "teacher.safetensors")
    for gcn, teacher in (("teacher", None), ("mix", None), ("gt", tmp_path / "t"), ("off", None)):
        stage2 = dataclasses.replace(recipe.stage2, gcn=gcn)  # type: ignore[arg-type]
        with pytest.raises(TrainingError, match=f"gcn is '{gcn}'"):
            train_stage2(
                dataclasses.replace(recipe, stage2=stage2), tmp_path / "s", data, run, teacher
            )


def test_teacher_student_and_refiner_from_one_recipe(
    recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(
        recipe, distill=EVERYTHING, stage2=dataclasses.replace(recipe.stage2, gcn="teacher")
    )
    data = DataOptions(tiny_root, tmp_path / "cache")

    def run(name: str) -> RunOptions:
        return RunOptions(tmp_path / name, accelerator="cpu")

    teacher = train_teacher(recipe, data, run("teacher"))
    assert teacher is not None
    before = teacher.read_bytes()
    student = train_stage1(recipe, data, run("s1"), teacher)
    assert student is not None
    network, spec = load_pose(student)
    assert spec == pose_spec(recipe)
    assert not any("align" in key or "teacher" in key for key in network.state_dict())
    header = (tmp_path / "s1" / "log.csv").read_text().splitlines()[0]
    assert {"loss", "kl", "fea", "l1", "cst", "logit", "dev_AP"} <= set(header.split(","))
    refined = train_stage2(recipe, student, data, run("s2"), teacher)
    assert refined is not None
    final, _ = load_pose(refined)
    for key, value in network.state_dict().items():  # batch-norm statistics included
        assert torch.equal(value, final.state_dict()[f"pose.{key}"]), key
    assert teacher.read_bytes() == before


def test_a_distilled_run_goes_on_to_the_same_weights(
    recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(recipe, distill=EVERYTHING)
    data = DataOptions(tiny_root, tmp_path / "cache")
    teacher = tmp_path / "teacher.safetensors"
    spec = dataclasses.replace(pose_spec(recipe), name="wide")
    save_pose(teacher, pose_net(recipe, WIDE, 1), spec)
    whole = train_stage1(recipe, data, RunOptions(tmp_path / "a", accelerator="cpu"), teacher)
    parts = None
    for _ in range(20):  # each call is out of time after one batch
        options = RunOptions(tmp_path / "b", resume=True, max_minutes=0, accelerator="cpu")
        parts = train_stage1(recipe, data, options, teacher)
        if parts is not None:
            break
    assert whole is not None
    assert parts is not None
    first, second = load_pose(whole)[0].state_dict(), load_pose(parts)[0].state_dict()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_label_stage_and_distill_stage_agree_on_the_kl(recipe: Recipe) -> None:
    stage, data = distill_stage(recipe, DistillConfig(kd_l1=True)).eval(), batch(recipe)
    output, aligned = stage.trainable(stage.normalise(data["crops"]))
    assert aligned is None
    kl = simcc_loss(output[:2], data["xy"], data["weight"], 2.0, recipe.labels)
    assert stage(data)["kl"].item() == pytest.approx(kl.item(), rel=1e-6)
