"""Stages with a teacher: it stays what it is, the losses fall, the wrong one is refused."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.skeleton import CROWDPOSE_14
from cfpose_training.checkpoint import load_pose, save_pose
from cfpose_training.config import DistillConfig, Recipe, load_recipe
from cfpose_training.data import DataOptions
from cfpose_training.distill import DistillStage
from cfpose_training.flip_test import flip_test
from cfpose_training.loop import RunOptions
from cfpose_training.losses import simcc_loss
from cfpose_training.nets.decode import decode_simcc
from cfpose_training.nets.igp_gcn import IGPGCN, IGPGCNConfig
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet
from cfpose_training.pose_training import (
    pose_spec,
    train_stage1,
    train_stage2,
    train_teacher,
)
from cfpose_training.stages import LabelStage, RefinerStage
from tests.training.distill_cases import EVERYTHING, WIDE, batch, pose_net

OUTPUT_WEIGHTS = (0.3, 0.5, 1.0)


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


def taught(recipe: Recipe, data: dict[str, Tensor]) -> PoseNet:
    """A teacher that has learnt the batch; its batch statistics are its running ones."""
    spec = pose_spec(recipe)
    teacher = pose_net(recipe, WIDE, 1)
    for layer in teacher.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.5
    stage = LabelStage(teacher, spec, recipe.labels).train()
    optimiser = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    for _ in range(60):
        stage(data)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
    return teacher


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
    config = dataclasses.replace(EVERYTHING, cst_ratio=0.3, alpha=2e-4)
    stage = distill_stage(recipe, config).eval()
    for module in stage.modules():
        if isinstance(module, torch.nn.Conv2d):  # or both would say the middle of the crop
            torch.nn.init.kaiming_normal_(module.weight)
    for epoch in (1, 3, 4):
        stage.set_epoch(epoch, 4)
        value = {name: loss.item() for name, loss in stage(batch(recipe)).items()}
        assert min(value[name] for name in ("fea", "l1", "cst", "logit")) > 10
        gamma = 1 - (epoch - 1) / 4
        taught_part = 2e-4 * value["fea"] + 0.1 * (value["l1"] + 0.3 * value["cst"])
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


# Stage 2


def refined_network(recipe: Recipe, **options: object) -> RefinedPoseNet:
    pose = pose_net(recipe, recipe.pose.hrnet, 0)
    spec = pose_spec(recipe)
    config = IGPGCNConfig(
        size_wh=spec.size_wh,
        tap_channels=pose.backbone.tap_channels,
        node_channels=8,
        joint_channels=(8, 8, 8),
        **options,  # type: ignore[arg-type]
    )
    return RefinedPoseNet(pose, IGPGCN(config, spec.skeleton), spec)


def test_refiner_targets_are_labels_the_teachers_argmax_or_both(recipe: Recipe) -> None:
    spec, data = pose_spec(recipe), batch(recipe)
    network, teacher = refined_network(recipe), pose_net(recipe, WIDE, 1)
    data["weight"][:, 5:] = 0
    gt = RefinerStage(network, spec, OUTPUT_WEIGHTS).eval()
    taught_only = RefinerStage(network, spec, OUTPUT_WEIGHTS, teacher=teacher).eval()
    mixed = RefinerStage(
        network, spec, OUTPUT_WEIGHTS, teacher=teacher, teacher_fraction=0.3
    ).eval()
    with torch.no_grad():
        output = teacher.eval()(gt.normalise(data["crops"]))
    pose, _ = decode_simcc(output.x_logits, output.y_logits, spec.split_ratio, "argmax")
    expected = gt({**data, "xy": pose})["loss"].item()
    assert taught_only(data)["loss"].item() == pytest.approx(expected, rel=1e-6)
    label_loss = gt(data)["loss"].item()
    assert label_loss != pytest.approx(expected, rel=1e-2)
    losses = {name: value.item() for name, value in mixed(data).items()}
    assert losses["loss"] == pytest.approx(0.7 * label_loss + 0.3 * expected, rel=1e-6)
    assert losses["l1"] == pytest.approx(label_loss, rel=1e-6)
    assert losses["l1_teacher"] == pytest.approx(expected, rel=1e-6)


def test_refiner_learns_the_averaged_pose_as_the_teacher_is_sure_of_it(recipe: Recipe) -> None:
    spec, data = pose_spec(recipe), batch(recipe)
    network, teacher = refined_network(recipe), pose_net(recipe, WIDE, 1)
    for layer in teacher.modules():
        if isinstance(layer, torch.nn.Conv2d):  # or it would say the middle of every crop
            torch.nn.init.kaiming_normal_(layer.weight)
    data["weight"][:, 5:] = 0
    gt = RefinerStage(network, spec, OUTPUT_WEIGHTS).eval()
    images = gt.normalise(data["crops"])
    with torch.no_grad():
        argmax = dataclasses.replace(spec, decode="argmax")
        pose, _ = flip_test(teacher.eval(), images, argmax)
        _, score = flip_test(teacher, images, spec)
    for sure in (False, True):
        stage = RefinerStage(
            network, spec, OUTPUT_WEIGHTS, teacher=teacher, teacher_flip=True,
            teacher_confidence=sure,
        ).eval()  # fmt: skip
        weight = data["weight"] * (score if sure else 1)
        weight = weight * (data["weight"].sum() / weight.sum())
        expected = gt({**data, "xy": pose, "weight": weight})["loss"].item()
        assert stage(data)["loss"].item() == pytest.approx(expected, rel=1e-5)
        plain = RefinerStage(network, spec, OUTPUT_WEIGHTS, teacher=teacher).eval()
        assert plain(data)["loss"].item() != pytest.approx(expected, rel=1e-3)


def test_refiner_moves_towards_the_teacher_and_leaves_it_alone(recipe: Recipe) -> None:
    spec, data = pose_spec(recipe), batch(recipe)
    network = refined_network(recipe, output="residual")
    stage = RefinerStage(network, spec, OUTPUT_WEIGHTS, teacher=taught(recipe, data)).train()
    assert stage.teacher is not None
    assert not any(module.training for module in stage.teacher.modules())
    frozen = {"pose": network.pose, "teacher": stage.teacher}
    before = {name: copy.deepcopy(net.state_dict()) for name, net in frozen.items()}
    optimiser = torch.optim.Adam([p for p in stage.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(40):
        loss = stage(data)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    for name, net in frozen.items():
        for key, value in net.state_dict().items():
            assert torch.equal(value, before[name][key]), (name, key)


def test_noise_on_the_coarse_pose_is_gaussian_and_in_training_only(recipe: Recipe) -> None:
    spec, data = pose_spec(recipe), batch(recipe, size=64)
    network = refined_network(recipe, output="residual")  # starts as the identity
    seen = []
    network.refiner.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    stage = RefinerStage(network, spec, OUTPUT_WEIGHTS, init_noise_px=3.0)
    torch.manual_seed(0)
    for mode in (False, True, False):
        stage.train(mode)
        stage(data)
    clean, noisy, again = seen
    assert torch.equal(clean, again)
    offset = noisy - clean
    assert offset.std().item() == pytest.approx(3.0, rel=0.05)
    assert offset.mean().item() == pytest.approx(0.0, abs=0.2)


def test_low_confidence_mode_replaces_weak_joints_alone(recipe: Recipe) -> None:
    images = torch.randn(3, 3, 48, 36, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    everywhere = refined_network(recipe).eval()
    with torch.no_grad():
        refined, coarse, score = everywhere(images)
    threshold = score.median().item()
    torch.manual_seed(0)
    weak_only = refined_network(recipe, refine="low_conf", refine_below=threshold).eval()
    weak_only.load_state_dict(everywhere.state_dict())
    with torch.no_grad():
        result, same_coarse, _ = weak_only(images)
    assert torch.equal(coarse, same_coarse)
    weak = score < threshold
    assert weak.any()
    assert not weak.all()
    assert torch.equal(result[weak], refined[weak])
    assert torch.equal(result[~weak], coarse[~weak])
    assert not torch.equal(refined[~weak], coarse[~weak])


def test_label_stage_and_distill_stage_agree_on_the_kl(recipe: Recipe) -> None:
    stage, data = distill_stage(recipe, DistillConfig(kd_l1=True)).eval(), batch(recipe)
    output, aligned = stage.trainable(stage.normalise(data["crops"]))
    assert aligned is None
    kl = simcc_loss(output[:2], data["xy"], data["weight"], 2.0, recipe.labels)
    assert stage(data)["kl"].item() == pytest.approx(kl.item(), rel=1e-6)
