"""How a run computes: arithmetic, parts of a batch, memory format, compilation, checkpointing."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import ModelSpec
from cfpose_training.config import LabelConfig, OptimConfig, load_recipe
from cfpose_training.data.crop_dataset import Batch, DataOptions
from cfpose_training.nets.hrnet import HRNet, HRNetConfig
from cfpose_training.nets.pose_net import PoseNet
from cfpose_training.pose.train import train_stage1
from cfpose_training.run.devices import launch_fabric, peak_memory_gb, prepare
from cfpose_training.run.loop import RunOptions
from cfpose_training.run.trainer import Trainer
from cfpose_training.stages.base import Stage
from cfpose_training.stages.stage1 import LabelStage

SPEC = ModelSpec(name="tiny", skeleton=COCO_17, size_wh=(36, 48))
HRNET = HRNetConfig(width=4, stem=4, bottlenecks=1, modules=(1, 2, 2), blocks=1)
PLAIN = OptimConfig(epochs=1, lr=1e-2)


class Fit(Stage):
    """x · w → y; remembers the dtypes that it saw. `burst` multiplies the loss of a step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trainable = nn.Linear(3, 1)
        self.seen: list[torch.dtype] = []
        self.burst = 1.0

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        answer = self.trainable(batch["x"])
        self.seen += [batch["y"].dtype, answer.dtype]
        loss = (answer.float() - batch["y"]).square().mean() * self.burst
        return {"loss": loss}


def trainer(stage: Stage, config: OptimConfig) -> Trainer:
    return Trainer(stage, config, accelerator="cpu", devices=1, threads=0)


def batch(seed: int = 0, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, generator=generator)
    return {"x": x, "y": x.sum(dim=1, keepdim=True)}


@pytest.mark.parametrize(
    ("precision", "layers"), [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)]
)
def test_mixed_precision_is_of_the_layers_and_not_of_the_labels(
    precision: Any, layers: torch.dtype
) -> None:
    stage = Fit()
    trainer(stage, dataclasses.replace(PLAIN, precision=precision)).train_step(batch(), 1e-2)
    assert stage.seen == [torch.float32, layers]


def test_float16_scales_its_loss_and_leaves_out_a_step_that_overflows() -> None:
    config = dataclasses.replace(PLAIN, precision="16-mixed", clip_norm=1.0)
    plain, half = Fit(), Fit()
    plain.burst = half.burst = 1e-2  # the first scale does not overflow
    one = trainer(plain, dataclasses.replace(config, precision="32-true"))
    two = trainer(half, config)
    scale = two.state()["precision"]["scale"]
    assert scale > 1
    for step in range(5):
        exact, rounded = (each.train_step(batch(step), 1e-2) for each in (one, two))
        assert rounded["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.01)  # unscaled
    for mine, theirs in zip(half.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3)
    before = copy.deepcopy(half.state_dict())
    half.burst = 1e30
    assert "grad_norm" not in two.train_step(batch(9), 1e-2)
    assert all(torch.equal(half.state_dict()[key], value) for key, value in before.items())
    state = two.state()
    assert state["precision"]["scale"] == scale / 2
    resumed = trainer(Fit(), config)
    resumed.restore(state)
    assert resumed.state()["precision"] == state["precision"]


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(parts: int) -> None:
    whole, pieces = Fit(), Fit()
    one = trainer(whole, PLAIN)
    two = trainer(pieces, dataclasses.replace(PLAIN, batch_size=8, accumulate=parts))
    for step in range(3):
        exact, summed = (each.train_step(batch(step), 1e-2) for each in (one, two))
        assert summed == pytest.approx(exact, rel=1e-5)
    assert (one.step, two.step) == (3, 3)
    assert len(pieces.seen) == parts * len(whole.seen)
    for mine, theirs in zip(pieces.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    with pytest.raises(TrainingError, match=r"9 samples .* into \d \(accumulate\)"):
        two.train_step(batch(size=9), 1e-2)


def test_a_recipe_whose_parts_do_not_fit_is_refused(tiny_recipe: Path) -> None:
    text = tiny_recipe.read_text()
    for new, message in (
        ("accumulate = 3", "batch_size 4 has no 3 equal parts"),
        ("compile = true\ncheckpointing = true", "do not go together"),
    ):
        tiny_recipe.write_text(text.replace("lr = 3e-3", f"lr = 3e-3\n{new}"))
        with pytest.raises(TrainingError, match=message):
            load_recipe(tiny_recipe)


def pose_stage() -> LabelStage:
    torch.manual_seed(1)
    network = PoseNet(HRNET, SPEC)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return LabelStage(network.to(memory_format=torch.channels_last), SPEC, LabelConfig())  # type: ignore[call-overload]


def pose_batch(size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(2)
    return {
        "crops": torch.randint(0, 256, (size, 48, 36, 3), generator=generator).byte(),
        "xy": 36 * torch.rand(size, 17, 2, generator=generator),
        "weight": torch.ones(size, 17),
    }


def gradients(stage: Stage) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Of a forward and backward pass: gradients, buffers, and the numbers kept in between."""
    kept = 0

    def keep(values: Tensor) -> Tensor:
        nonlocal kept
        kept += values.numel()
        return values

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
        loss = stage.train()(pose_batch())["loss"]
    loss.backward()
    found = {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}
    return found, dict(stage.named_buffers()), kept


def test_checkpointing_gives_the_same_gradients_and_norms_with_less_memory() -> None:
    kept_all, again = pose_stage(), pose_stage()
    prepare(again, dataclasses.replace(PLAIN, checkpointing=True))
    exact, norms, many = gradients(kept_all)
    found, moved, few = gradients(again)
    assert found.keys() == exact.keys()
    assert all(torch.equal(found[name], value) for name, value in exact.items())
    assert all(torch.equal(moved[name], value) for name, value in norms.items())
    assert int(moved["trainable.backbone.bn1.num_batches_tracked"]) == 1
    assert few < 0.5 * many
    networks = [part for part in again.modules() if isinstance(part, HRNet)]
    assert [part.checkpointing for part in networks] == [True]
    with pytest.raises(TrainingError, match="trains no HRNet"):
        prepare(Fit(), dataclasses.replace(PLAIN, checkpointing=True))


def test_maps_lie_channel_by_channel_where_asked() -> None:
    lasts: list[bool] = []
    stages = pose_stage(), pose_stage()
    prepare(stages[1], dataclasses.replace(PLAIN, channels_last=False))
    for stage in stages:
        conv = stage.trainable.backbone.conv2  # type: ignore[union-attr]
        conv.register_forward_hook(  # type: ignore[operator, union-attr]
            lambda _, inputs, answer: lasts.extend(
                values.is_contiguous(memory_format=torch.channels_last)
                for values in (inputs[0], answer)
            )
        )
    exact, found = (gradients(stage)[0] for stage in stages)
    assert lasts == [True, True, False, False]
    for name, value in exact.items():
        torch.testing.assert_close(found[name], value, rtol=2e-3, atol=2e-3)


def test_a_compiled_network_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile's graphs, run as they were captured: its code generator takes minutes."""
    compiled: list[nn.Module] = []
    real = nn.Module.compile

    def compile_with(module: nn.Module) -> None:
        compiled.append(module)
        real(module, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_with)
    plain, quick = Fit(), Fit()
    config = dataclasses.replace(PLAIN, ema_decay=0.9)
    one, two = trainer(plain, config), trainer(quick, dataclasses.replace(config, compile=True))
    assert compiled == [quick.trainable]
    for step in range(3):
        assert two.train_step(batch(step), 1e-2) == pytest.approx(one.train_step(batch(step), 1e-2))
    assert two.result.state_dict().keys() == plain.trainable.state_dict().keys()
    for key, value in one.result.state_dict().items():
        torch.testing.assert_close(two.result.state_dict()[key], value)


def test_a_recipe_turns_all_of_it_on(tiny_recipe: Path, tiny_root: Path, tmp_path: Path) -> None:
    options = "precision = 'bf16-mixed'\naccumulate = 2\ncheckpointing = true\n"
    options += "channels_last = false\n"
    text = tiny_recipe.read_text()
    tiny_recipe.write_text(text.replace("[stage1]\n", f"[stage1]\n{options}"))
    run = RunOptions(tmp_path / "run", accelerator="cpu")
    data = DataOptions(tiny_root, tmp_path / "cache")
    assert train_stage1(load_recipe(tiny_recipe), data, run) is not None
    head, *rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    last = dict(zip(head.split(","), rows[-1].split(","), strict=True))
    assert float(last["steps_per_s"]) > 0
    assert float(last["samples_per_s"]) == pytest.approx(4 * float(last["steps_per_s"]), rel=0.01)
    assert 0.05 < float(last["memory_gb"]) < 64


def test_the_memory_of_this_process_stands_in_for_a_gpus() -> None:
    peak = peak_memory_gb(torch.device("cpu"))
    assert peak is not None
    assert 0.05 < peak < 64
    with pytest.raises(TrainingError, match=r"cannot run on 1 device.*'abacus'"):
        launch_fabric("abacus", 1, "32-true")
