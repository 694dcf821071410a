"""MoveNet's trunk: sizes, alignment, weights from its files, starts, checkpoints, graphs."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from cfpose_export.graph.half_weights import halve_weights
from cfpose_export.graph.trace import build_pose
from cfpose_sdk.errors import ArtifactError, InputError, TrainingError
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import ModelSpec
from cfpose_training.checkpoints.convert import initialise
from cfpose_training.checkpoints.files import load_pose, save_pose
from cfpose_training.checkpoints.movenet import read_movenet
from cfpose_training.cli import main
from cfpose_training.config import load_recipe
from cfpose_training.nets.fused import FusedPose
from cfpose_training.nets.movenet import (
    MOVENET_MEAN_RGB,
    MOVENET_STD_RGB,
    MoveNetBackbone,
    MoveNetConfig,
    MoveNetName,
    same_conv,
)
from cfpose_training.nets.pose_net import PoseNet
from cfpose_training.pose.train import check_start, pose_spec

RECIPE = """
skeleton = "coco-17"
sources = []
[pose]
name = "tuned"
size_wh = {size_wh}
head = "marginal"
movenet = {{ body = "lightning" }}
[stage1]
epochs = 1
[stage2.optim]
epochs = 1
"""
SIDES: dict[MoveNetName, int] = {"lightning": 192, "thunder": 256}


def spec_of(size_wh: tuple[int, int]) -> ModelSpec:
    return ModelSpec(
        "movenet", COCO_17, size_wh, mean_rgb=MOVENET_MEAN_RGB, std_rgb=MOVENET_STD_RGB
    )


def network_of(size_wh: tuple[int, int], frozen: int = 0, seed: int = 0) -> PoseNet:
    torch.manual_seed(seed)
    return PoseNet(MoveNetConfig("lightning", frozen), spec_of(size_wh), "marginal").eval()


@pytest.fixture(scope="module")
def trained() -> PoseNet:
    """A network with every weight of its head off its start."""
    network = network_of((48, 64))
    draw = torch.Generator().manual_seed(4)
    for tensor in network.head.parameters():
        tensor.data += 0.1 * torch.randn(tensor.shape, generator=draw)
    return network


@pytest.mark.parametrize("body", ["lightning", "thunder"])
def test_the_twin_computes_what_the_file_does(shared_dir: Path, body: MoveNetName) -> None:
    """Heat and, at the middle 3x3 cells, the place of each joint, on a photo."""
    side, path = SIDES[body], shared_dir / f"data/labellers/movenet_{body}.onnx"
    photo = cv2.imread(str(shared_dir / "data/shippable/astronaut.jpg"))
    pixels = cv2.resize(photo, (side, side))[..., ::-1]
    model = onnx.load(path)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    ends = [convolutions[-4].output[0], convolutions[-3].output[0]]  # heat, regression
    for end in ends:
        model.graph.output.append(helper.make_tensor_value_info(end, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    heat, moves = session.run(ends, {"input": pixels[None].astype(np.int32)})

    network = PoseNet(MoveNetConfig(body), spec_of((side, side)), "marginal").eval()
    found = initialise(network, path)
    assert found.taken == ("head.heat", "head.regression")
    # the file holds 1 / 127.5 in half precision, which moves large logits by more than rounding
    scale = float(np.float16(1 / 127.5))
    image = torch.from_numpy(pixels.copy()).float().permute(2, 0, 1)[None] * scale - 1
    with torch.no_grad():
        quarter = network.backbone(image).quarter
        ours = network.head.heat(quarter).numpy()
        place_y, place_x = network.head.expected(quarter)
    counted = np.abs(heat) < 24
    assert np.abs(ours - heat)[counted].max() < 1e-3
    middle = (side // 4 - 1) // 2
    near = slice(middle - 1, middle + 2)
    expected = moves.reshape(17, 2, side // 4, side // 4)[:, :, near, near].mean(axis=(2, 3))
    np.testing.assert_allclose(place_y[0].numpy(), expected[:, 0] + middle, atol=1e-3)
    np.testing.assert_allclose(place_x[0].numpy(), expected[:, 1] + middle, atol=1e-3)


@pytest.mark.parametrize("size_hw", [(64, 48), (192, 144), (80, 112)])
def test_any_crop_of_sixteens_is_taken(size_hw: tuple[int, int]) -> None:
    backbone = MoveNetBackbone(MoveNetConfig()).eval()
    with torch.no_grad():
        taps = backbone(torch.zeros(2, 3, *size_hw))
    for tap, channels, stride in zip(taps, backbone.tap_channels, (16, 8, 4), strict=True):
        assert tap.shape == (2, channels, *(side // stride for side in size_hw))
    with pytest.raises(InputError, match="multiples of 16"):
        PoseNet(MoveNetConfig(), spec_of((48, 72)), "marginal")


@pytest.mark.parametrize("side", [8, 9])
def test_stride_two_stands_on_odd_cells_at_every_size(side: int) -> None:
    layer = same_conv(1, 1, 2)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    layer.weight.data[0, 0, 1, 1] = 1  # the middle of the kernel
    cells = torch.arange(side * side, dtype=torch.float32).reshape(1, 1, side, side)
    padded = torch.nn.functional.pad(cells, (0, 2, 0, 2))
    half = -(-side // 2)
    expected = padded[:, :, 1 : 2 * half : 2, 1 : 2 * half : 2]
    assert torch.equal(layer(cells), expected)


def test_frozen_stages_do_not_learn() -> None:
    backbone = MoveNetBackbone(MoveNetConfig(frozen=2))
    still = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    parts = {name.split(".")[0] + name.split(".")[1] * name.startswith("stages") for name in still}
    assert parts == {"stem", "first", "stages0", "stages1"}
    assert all(p.requires_grad for p in MoveNetBackbone(MoveNetConfig(frozen=0)).parameters())


def test_frozen_stages_need_a_start(root: Path) -> None:
    recipe = load_recipe(root / "training/recipes/cfpose-m.toml")
    with pytest.raises(TrainingError, match="--init MoveNet Thunder's ONNX file"):
        check_start(recipe, None)
    free = dataclasses.replace(recipe.pose, movenet=MoveNetConfig("thunder", frozen=0))
    check_start(dataclasses.replace(recipe, pose=free), None)


def test_its_pixels_are_movenets(root: Path) -> None:
    recipe = load_recipe(root / "training/recipes/cfpose-m.toml")
    spec = pose_spec(dataclasses.replace(recipe, joints=COCO_17))
    assert (spec.mean_rgb, spec.std_rgb) == ((0.5,) * 3, (0.5,) * 3)  # pixel / 127.5 - 1


def test_a_checkpoint_gives_the_network_back(trained: PoseNet, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_pose(path, trained, spec_of((48, 64)))
    network, spec = load_pose(path)
    assert isinstance(network, PoseNet)
    assert (network.head_name, spec) == ("marginal", spec_of((48, 64)))
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for ours, theirs in zip(network(images)[:2], trained(images)[:2], strict=True):
            assert torch.equal(ours, theirs)


def test_a_run_goes_on_from_a_checkpoint_also_at_another_size(
    trained: PoseNet, tmp_path: Path
) -> None:
    path = tmp_path / "student.safetensors"
    save_pose(path, trained, spec_of((48, 64)))
    same = network_of((48, 64), seed=1)
    assert not initialise(same, path).fresh
    for ours, theirs in zip(same.parameters(), trained.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    larger = network_of((96, 128), seed=1)
    found = initialise(larger, path)
    assert set(found.fresh) == {"head.mlp_head_x", "head.mlp_head_y", "head.prior"}
    assert torch.equal(larger.head.heat.out.weight, trained.head.heat.out.weight)


@pytest.mark.parametrize("power", [1.0, 0.9])
def test_an_exported_graph_computes_the_same_and_starts_a_run(
    trained: PoseNet, tmp_path: Path, power: float, capsys: pytest.CaptureFixture[str]
) -> None:
    pose, spec, path = copy.deepcopy(trained), spec_of((48, 64)), tmp_path / "pose.onnx"
    torch.nn.init.constant_(pose.head.power, power)
    fused = FusedPose(pose, spec).eval()
    onnx.save_model(build_pose(fused), path)
    crops = torch.randint(0, 256, (3, 64, 48, 3), generator=torch.Generator().manual_seed(2)).byte()
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"crops": crops.numpy()}), strict=True))
    with torch.no_grad():
        expected = fused(crops)._asdict()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name].numpy(), rtol=1e-4, atol=1e-3)
    started = network_of((48, 64), seed=1)
    assert not initialise(started, path).fresh
    for name, value in started.state_dict().items():
        torch.testing.assert_close(value, pose.state_dict()[name], rtol=0, atol=0)
    checkpoint = tmp_path / "pose.safetensors"
    assert main(["convert", str(path), "-o", str(checkpoint)]) == 0
    assert "keeps no calibration" in capsys.readouterr().out
    converted, found_spec = load_pose(checkpoint)
    assert found_spec == spec
    for name, value in converted.state_dict().items():
        torch.testing.assert_close(value, pose.state_dict()[name], rtol=0, atol=0)

    recipe = tmp_path / "tuned.toml"
    recipe.write_text(RECIPE.format(size_wh="[48, 64]"))
    assert main(["convert", str(path), "-o", str(checkpoint), "--recipe", str(recipe)]) == 0
    assert load_pose(checkpoint)[1] == pose_spec(load_recipe(recipe))
    recipe.write_text(RECIPE.format(size_wh="[64, 64]"))
    with pytest.raises(ArtifactError, match=r"crops of \(48, 64\).*asks for \(64, 64\)"):
        main(["convert", str(path), "-o", str(checkpoint), "--recipe", str(recipe)])
    with pytest.raises(ArtifactError, match=r"another trunk than HRNet.*backbone\.stem"):
        main(["convert", str(path), "-o", str(checkpoint), "--network", "w32"])

    half = onnx.load_model(path)
    halve_weights(half)
    onnx.save_model(half, path)
    assert not initialise(started, path).fresh
    for name, value in started.state_dict().items():
        torch.testing.assert_close(value, pose.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_other_files_are_refused_with_what_was_found(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 3, 3, 3], np.zeros(108))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("x", "y")]
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "other", [ends[0]], [ends[1]], [weight])
    path = tmp_path / "other.onnx"
    onnx.save(helper.make_model(graph), path)
    with pytest.raises(ArtifactError, match="1 convolutions, the first with 4 channels"):
        read_movenet(path)
    narrow = PoseNet(MoveNetConfig("lightning"), spec_of((48, 64)), "marginal")
    wide = PoseNet(MoveNetConfig("thunder"), spec_of((48, 64)), "marginal")
    save_pose(tmp_path / "wide.safetensors", wide, spec_of((48, 64)))
    with pytest.raises(ArtifactError, match=r"no MoveNet Lightning.*stem.weight has shape"):
        initialise(narrow, tmp_path / "wide.safetensors")


def test_the_other_width_is_told_what_to_give(shared_dir: Path) -> None:
    network = PoseNet(MoveNetConfig("thunder"), spec_of((48, 64)), "marginal")
    with pytest.raises(ArtifactError, match=r"is MoveNet Lightning.*body = 'lightning'"):
        initialise(network, shared_dir / "data/labellers/movenet_lightning.onnx")
