"""How loudly each loss speaks to the student's map, and the alpha that follows from it."""

from __future__ import annotations

import copy
import csv
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cfpose_training.checkpoints.files import load_pose, save_pose
from cfpose_training.config import DistillConfig, Recipe, load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.losses import (
    feature_loss,
    logit_loss,
    pose_l1,
    simcc_loss,
    soft_pose,
    structure_loss,
)
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.pose_net import PoseNet
from cfpose_training.pose.train import pose_spec, train_stage1
from cfpose_training.run.loop import RunOptions
from cfpose_training.stages.base import Stage
from cfpose_training.stages.stage1 import DistillStage, feature_gradient_norms
from tests.training.distill_cases import EVERYTHING, WIDE, batch, pose_net

AUTO = dataclasses.replace(EVERYTHING, alpha_auto=0.3)


@pytest.fixture(autouse=True)
def few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alpha is measured on three batches, not on twenty."""
    monkeypatch.setattr("cfpose_training.stages.stage1.ALPHA_BATCHES", 3)


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    text = tiny_recipe.read_text().replace('kind = "gaussian"', 'kind = "smoothed"')
    tiny_recipe.write_text(text)
    return load_recipe(tiny_recipe)


def lively_net(recipe: Recipe, config: HRNetConfig, seed: int) -> PoseNet:
    network = pose_net(recipe, config, seed)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):  # its own init says the middle of every crop
            torch.nn.init.kaiming_normal_(module.weight)
    return network


def distill_stage(recipe: Recipe, config: DistillConfig = EVERYTHING) -> DistillStage:
    spec = pose_spec(recipe)
    teacher, student = lively_net(recipe, WIDE, 1), lively_net(recipe, recipe.pose.hrnet, 2)
    limbs = torch.linspace(0.5, 1.5, len(spec.skeleton.limbs))
    return DistillStage(student, spec, recipe.labels, config, teacher, spec, limbs)


def by_hand(stage: DistillStage, data: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each weighted loss of a batch on the whole graph, term by term, and F."""
    config, spec = stage.config, stage.spec
    images = stage.normalise(data["crops"])
    output, aligned = stage.trainable(images)
    with torch.no_grad():
        taught = stage.teacher(images)
    assert aligned is not None
    logits = output.x_logits, output.y_logits
    ours, theirs = soft_pose(logits, 2.0, config.tau), soft_pose(taught[:2], 2.0, config.tau)
    limbs = spec.skeleton.limbs
    gamma = stage.gamma
    return {
        "F": output.taps.quarter,
        "kl": simcc_loss(logits, data["xy"], data["weight"], 2.0, stage.labels),
        "fea": gamma * 5e-5 * feature_loss(aligned, taught.taps.quarter, "sum"),
        "l1": gamma * 0.1 * pose_l1(ours, theirs),
        "cst": gamma * 0.1 * structure_loss(ours, theirs, limbs, stage.limb_weights),
        "logit": gamma * 0.1 * logit_loss(logits, taught[:2], 1.0),
    }


def test_norms_equal_autograd_on_the_whole_graph_in_float64(recipe: Recipe) -> None:
    stage, data = distill_stage(recipe).double().eval(), batch(recipe)
    data = {key: value.double() if key != "crops" else value for key, value in data.items()}
    for epoch in (1, 3):
        stage.set_epoch(epoch, 4)
        losses = by_hand(stage, data)
        feature = losses.pop("F")
        expected = {}
        for name, loss in losses.items():
            (gradient,) = torch.autograd.grad(loss, feature, retain_graph=True)
            expected[name] = gradient.square().sum().sqrt().item()
        found = feature_gradient_norms(stage, data)
        assert found == pytest.approx(expected, rel=1e-9)
        assert list(found) == ["kl", "fea", "l1", "cst", "logit"]
        assert min(found.values()) > 1e-6
        assert stage.epoch_figures(data) == {f"grad_{k}": v for k, v in found.items()}
    assert Stage().epoch_figures(data) == {}


def test_a_step_along_the_gradient_changes_the_loss_by_the_norm(recipe: Recipe) -> None:
    """The directional derivative, by differences: no autograd in the oracle's value."""
    stage, data = distill_stage(recipe).double().eval(), batch(recipe)
    norm = feature_gradient_norms(stage, data)["kl"]
    head = stage.trainable.student.head
    with torch.no_grad():
        feature = stage.trainable.student(stage.normalise(data["crops"])).taps.quarter

    def kl(value: Tensor) -> Tensor:
        return simcc_loss(head(value), data["xy"].double(), data["weight"], 2.0, stage.labels)

    variable = feature.clone().requires_grad_()
    (direction,) = torch.autograd.grad(kl(variable), variable)
    step = 1e-4 * direction / direction.norm()
    with torch.no_grad():
        slope = (kl(feature + step) - kl(feature - step)).item() / 2e-4
    assert slope == pytest.approx(norm, rel=1e-6)


def test_measuring_leaves_no_trace(recipe: Recipe) -> None:
    stage, data = distill_stage(recipe).train(), batch(recipe)
    stage(data)["loss"].backward()  # gradients to keep
    torch.manual_seed(9)
    state = copy.deepcopy(stage.state_dict())
    gradients = {name: p.grad for name, p in stage.named_parameters()}
    copies = {name: None if g is None else g.clone() for name, g in gradients.items()}
    rng = torch.get_rng_state()
    figures = stage.epoch_figures(data)
    assert torch.equal(torch.get_rng_state(), rng)
    assert stage.trainable.training
    for key, value in stage.state_dict().items():
        assert torch.equal(value, state[key]), key
    for name, parameter in stage.named_parameters():
        kept = copies[name]
        assert parameter.grad is gradients[name], name
        assert (kept is None) == (parameter.grad is None), name
        if kept is not None and parameter.grad is not None:
            assert torch.equal(parameter.grad, kept), name
    # in training mode the maps are those of batch statistics, as in the step that follows
    assert figures != stage.eval().epoch_figures(data)


def test_alpha_makes_the_feature_gradient_the_asked_share_of_the_kls(recipe: Recipe) -> None:
    stage, data = distill_stage(recipe, AUTO).train(), batch(recipe)
    stage.set_epoch(1, 4)
    alpha = stage(data)["alpha"].item()
    assert alpha != pytest.approx(5e-5, rel=1e-2)
    norms = feature_gradient_norms(stage, data)
    assert norms["fea"] / norms["kl"] == pytest.approx(0.3, rel=1e-4)


def test_alpha_is_the_mean_of_the_first_batches_and_then_fixed(recipe: Recipe) -> None:
    stage = distill_stage(recipe, AUTO).train()
    stage.set_epoch(1, 4)
    kl = fea = 0.0
    for seed in range(3):
        data = batch(recipe, seed)
        norms = feature_gradient_norms(stage, data)  # before the step: with the alpha so far
        kl, fea = kl + norms["kl"], fea + norms["fea"] / stage.trainable.alpha.item()
        losses = {name: value.item() for name, value in stage(data).items()}
        assert losses["alpha"] == pytest.approx(0.3 * kl / fea, rel=1e-4)
        rest = losses["l1"] + losses["cst"] + losses["logit"]
        total = losses["kl"] + losses["alpha"] * losses["fea"] + 0.1 * rest
        assert losses["loss"] == pytest.approx(total, rel=1e-5)
    fixed = stage.trainable.alpha.item()
    assert stage(batch(recipe, 7))["alpha"].item() == fixed
    stage.set_epoch(2, 4)
    assert stage(batch(recipe, 8))["alpha"].item() == fixed


def test_several_processes_agree_on_alpha(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measures its part of the batch; the sums over all of them make one alpha."""

    def reduce(tensor: Tensor) -> None:
        tensor += torch.tensor([2.0, 400.0, 1.0])  # another process's norms, and its one batch

    stage, data = distill_stage(recipe, AUTO).train(), batch(recipe)
    stage.set_epoch(1, 4)
    norms = feature_gradient_norms(stage, data)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", reduce)
    found = stage(data)["alpha"].item()
    expected = 0.3 * (norms["kl"] + 2) / (norms["fea"] / 5e-5 + 400)
    assert found == pytest.approx(expected, rel=1e-4)
    assert stage.trainable.alpha_sums[2].item() == 1


def test_alpha_is_measured_in_epoch_1_of_training_alone(recipe: Recipe) -> None:
    stage = distill_stage(recipe, AUTO)
    stage.eval()
    assert stage(batch(recipe))["alpha"].item() == pytest.approx(5e-5)
    stage.train()
    stage.set_epoch(2, 4)
    assert stage(batch(recipe))["alpha"].item() == pytest.approx(5e-5)
    without = distill_stage(recipe, dataclasses.replace(AUTO, kd_fea=False))
    assert "alpha" not in without(batch(recipe))
    assert not any("alpha" in key for key in distill_stage(recipe).state_dict())


def test_a_resumed_run_goes_on_with_its_alpha(
    recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    """Stopped after each batch, also between two measurements: the same weights in the end."""
    recipe = dataclasses.replace(recipe, distill=AUTO)
    data = DataOptions(tiny_root, tmp_path / "cache")
    teacher = tmp_path / "teacher.safetensors"
    save_pose(teacher, lively_net(recipe, WIDE, 1), pose_spec(recipe))
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
    assert not any("alpha" in key for key in first)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    states = [torch.load(tmp_path / run / "state.pt", weights_only=True)["module"] for run in "ab"]
    assert states[0]["alpha_sums"][2] == 3
    for key in ("alpha", "alpha_sums"):
        assert torch.equal(states[0][key], states[1][key])
    with open(tmp_path / "a" / "log.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["alpha"]) == pytest.approx(states[0]["alpha"].item(), rel=1e-4)


@pytest.mark.parametrize(("flip", "sure"), [(True, False), (False, True), (True, True)])
def test_what_the_teacher_says_follows_its_switches(recipe: Recipe, flip: bool, sure: bool) -> None:
    """The terms equal those written out with flip_test's own decode of the averaged answer."""
    from cfpose_training.nets.decode import decode_simcc
    from cfpose_training.nets.flip import flip_test, unmirror_logits

    config = dataclasses.replace(EVERYTHING, teacher_flip=flip, teacher_confidence=sure, tau=1.0)
    stage, data = distill_stage(recipe, config).double().eval(), batch(recipe)
    before = copy.deepcopy(stage.teacher.state_dict())
    images = stage.normalise(data["crops"])
    spec, limbs = stage.spec, torch.tensor(stage.spec.skeleton.limbs)
    with torch.no_grad():
        output = stage.trainable.student(images)
        direct, mirrored = stage.teacher(images), stage.teacher(images.flip(3))
        views = [direct[:2], unmirror_logits(mirrored[:2], spec)] if flip else [direct[:2]]
        soft = [[torch.softmax(axis, -1) for axis in view] for view in views]
        mean = [sum(axis) / len(soft) for axis in zip(*soft, strict=True)]  # type: ignore[arg-type]
        bins = [torch.arange(n).double() for n in spec.bins_xy]
        pose = torch.stack([(m * b).sum(-1) / 2 for m, b in zip(mean, bins, strict=True)], -1)
        _, score = decode_simcc(*direct[:2], 2.0, spec.decode)
        if flip:
            _, score = flip_test(stage.teacher, images, spec)
        weight = score / score.mean() if sure else torch.ones_like(score)
        ours = soft_pose(output[:2], 2.0, 1.0)
        l1 = ((ours - pose).abs().sum(-1) * weight).sum() / 4
        lengths = [
            ((p[:, limbs[:, 0]] - p[:, limbs[:, 1]]).square().sum(-1) + 1e-6).sqrt()
            for p in (ours, pose)
        ]
        ends = torch.minimum(weight[:, limbs[:, 0]], weight[:, limbs[:, 1]])
        cst = ((lengths[0] - lengths[1]).abs() * ends * stage.limb_weights).sum() / 4
        cross = sum(
            (m * (m.log() - torch.log_softmax(z, -1))).sum()
            for m, z in zip(mean, output[:2], strict=True)
        )
    found = stage(data)
    assert found["l1"].item() == pytest.approx(l1.item(), rel=1e-7)
    assert found["cst"].item() == pytest.approx(cst.item(), rel=1e-7)
    assert found["logit"].item() == pytest.approx(float(cross) / 4, rel=1e-7)
    plain = distill_stage(recipe).double().eval()(data)
    assert found["fea"].item() == pytest.approx(plain["fea"].item(), rel=1e-9)
    assert found["l1"].item() != pytest.approx(plain["l1"].item(), rel=1e-3)
    for key, value in stage.teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
