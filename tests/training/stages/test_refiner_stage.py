"""Stage 2: what the refiner learns, from whom, and what stays as it is."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from cfpose_training.config import Recipe, load_recipe
from cfpose_training.nets.decode import decode_simcc
from cfpose_training.nets.flip import flip_test
from cfpose_training.pose.train import pose_spec
from cfpose_training.stages.stage2 import RefinerStage
from tests.training.distill_cases import WIDE, batch, losses_of, pose_net, refined_network, taught

OUTPUT_WEIGHTS = (0.3, 0.5, 1.0)


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


def test_refiner_stage_trains_the_refiner_alone(recipe: Recipe) -> None:
    network = refined_network(recipe, output="residual")
    stage = RefinerStage(network, pose_spec(recipe), OUTPUT_WEIGHTS)
    stage.train()
    before = copy.deepcopy(network.state_dict())
    optimiser = torch.optim.Adam([p for p in stage.parameters() if p.requires_grad], lr=1e-2)
    losses = losses_of(stage, optimiser, batch(recipe), steps=80)
    assert losses[-1] < 0.75 * losses[0]
    after = network.state_dict()
    for key, value in before.items():
        if key.startswith("pose."):  # batch-norm statistics included
            assert torch.equal(value, after[key]), key
    moved = [k for k in before if k.startswith("refiner.") and not torch.equal(before[k], after[k])]
    assert any("blocks" in key for key in moved)


def test_refinement_moves_the_pose_towards_the_target(recipe: Recipe) -> None:
    network = refined_network(recipe, output="residual")
    spec = pose_spec(recipe)
    stage = RefinerStage(network, spec, OUTPUT_WEIGHTS).train()
    data = batch(recipe)
    optimiser = torch.optim.Adam(network.refiner.parameters(), lr=1e-2)
    losses_of(stage, optimiser, data, steps=60)
    # batch statistics, as in training: the running ones have not settled after 60 steps
    with torch.no_grad():
        refined, coarse, _ = network(stage.normalise(data["crops"]))
    error = [(pose - data["xy"]).abs().mean().item() for pose in (coarse, refined)]
    assert error[1] < 0.7 * error[0]


def test_oks_moves_what_it_forgives_and_leaves_what_is_out_of_reach(recipe: Recipe) -> None:
    network = refined_network(recipe, output="residual")
    stage = RefinerStage(network, pose_spec(recipe), OUTPUT_WEIGHTS, loss="oks").train()
    data = batch(recipe)
    with torch.no_grad():
        _, coarse, _ = network(stage.normalise(data["crops"]))
    optimiser = torch.optim.Adam(network.refiner.parameters(), lr=1e-2)
    far = {**data, "xy": coarse + 60.0, "weight": torch.ones_like(data["weight"])}
    stage(far)["loss"].backward()
    assert all(not p.grad.any() for p in network.refiner.parameters() if p.grad is not None)
    near = {**far, "xy": coarse + 1.0}
    losses = losses_of(stage, optimiser, near, steps=60)
    with torch.no_grad():
        refined, _, _ = network(stage.normalise(data["crops"]))
    assert losses[-1] < 0.5 * losses[0]
    assert (refined - near["xy"]).abs().mean() < 0.5


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
    losses = losses_of(stage, optimiser, data, steps=40)
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
