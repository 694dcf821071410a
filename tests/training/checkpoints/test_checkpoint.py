"""Checkpoints come back as they went in, and say what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cfpose_sdk.errors import ArtifactError, InputError, SpecError
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import SPEC_KEY, ModelSpec
from cfpose_training.checkpoints.files import load_pose, load_tensors, save_pose, save_tensors
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.igp_gcn import IGPGCN, IGPGCNConfig
from cfpose_training.nets.pose_net import PoseNet, RefinedPoseNet

SPEC = ModelSpec(name="tiny", skeleton=COCO_17, size_wh=(36, 48), trained_on=("nothing",))
HRNET = HRNetConfig(width=4, stem=4, bottlenecks=1, modules=(1, 1, 1), blocks=1)


@pytest.fixture
def network() -> RefinedPoseNet:
    torch.manual_seed(5)
    pose = PoseNet(HRNET, SPEC)
    config = IGPGCNConfig(
        size_wh=SPEC.size_wh, tap_channels=pose.backbone.tap_channels,
        node_channels=8, joint_channels=(8, 8, 8),
    )  # fmt: skip
    return RefinedPoseNet(pose, IGPGCN(config, COCO_17), SPEC)


def test_round_trip(network: RefinedPoseNet, tmp_path: Path) -> None:
    for original in (network, network.pose):
        save_pose(tmp_path / "x.safetensors", original, SPEC)
        loaded, spec = load_pose(tmp_path / "x.safetensors")
        assert spec == SPEC
        assert type(loaded) is type(original)
        assert not loaded.training
        for key, value in original.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[key]), key


def test_loading_leaves_the_random_state_alone(network: RefinedPoseNet, tmp_path: Path) -> None:
    save_pose(tmp_path / "x.safetensors", network, SPEC)
    state = torch.get_rng_state()
    load_pose(tmp_path / "x.safetensors")
    assert torch.equal(state, torch.get_rng_state())


def test_every_key_that_does_not_fit_is_named(network: RefinedPoseNet, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_pose(path, network, SPEC)
    tensors, metadata = load_tensors(path)
    del tensors["pose.backbone.conv1.weight"]
    tensors["pose.head.extra"] = torch.zeros(1)
    tensors["pose.head.final_layer.bias"] = torch.zeros(3)
    save_tensors(path, tensors, metadata)
    with pytest.raises(ArtifactError) as error:
        load_pose(path)
    message = str(error.value)
    assert "missing pose.backbone.conv1.weight" in message
    assert "unexpected pose.head.extra" in message
    assert "final_layer.bias has shape (3,), expected (17,)" in message


def test_foreign_and_broken_files_are_refused(network: RefinedPoseNet, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(ArtifactError, match="cannot read"):
        load_pose(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ArtifactError, match="cannot read"):
        load_pose(path)
    save_tensors(path, {"a": torch.zeros(1)}, {})
    with pytest.raises(ArtifactError, match="not a cfpose pose checkpoint"):
        load_pose(path)
    save_pose(path, network, SPEC)
    tensors, metadata = load_tensors(path)
    newer = metadata[SPEC_KEY].replace('"spec_version": 8', '"spec_version": 99')
    save_tensors(path, tensors, {**metadata, SPEC_KEY: newer})
    with pytest.raises(SpecError, match="spec_version 99"):
        load_pose(path)


def test_a_failed_write_leaves_the_last_good_file(
    network: RefinedPoseNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    save_pose(path, network, SPEC)
    good = path.read_bytes()

    def full_disk(file: Path, data: bytes) -> None:
        real_write(file, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    real_write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(InputError, match="No space left"):
        save_pose(path, network, SPEC)
    assert path.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
