"""Starts: bundled models by name, and heads whose rows follow the joints' names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cfpose_sdk.backends.bundled import model_file
from cfpose_sdk.errors import ArtifactError, TrainingError
from cfpose_sdk.files import MODELS
from cfpose_sdk.skeleton import COCO_17, Skeleton
from cfpose_sdk.spec import ModelSpec
from cfpose_training.checkpoints.convert import initialise, load_network
from cfpose_training.checkpoints.files import save_pose
from cfpose_training.checkpoints.initial import is_own_graph, open_initial
from cfpose_training.nets.movenet import MoveNetConfig
from cfpose_training.nets.pose_net import BackboneConfig, HeadName, PoseNet
from cfpose_training.pose.train import open_teacher

# another order, other spelling, two that COCO lacks
OWN = Skeleton(
    ("tail", "Right Wrist", "nose", "Left Wrist", "hat"), (), ((3, 1),), (0.05,) * 5
)  # fmt: skip
KNOWN = {"Right Wrist": 10, "nose": 0, "Left Wrist": 9}


def spec_of(skeleton: Skeleton, size_wh: tuple[int, int] = (48, 64)) -> ModelSpec:
    return ModelSpec("start", skeleton, size_wh)


@pytest.fixture(scope="module")
def bundled() -> tuple[PoseNet, ModelSpec]:
    return load_network(model_file("default"))


def test_names_stand_for_the_bundled_files(tmp_path: Path) -> None:
    assert model_file("default") == model_file("cfpose-s") == MODELS / "cfpose-s.onnx"
    own = tmp_path / "x.safetensors"
    assert model_file(own) == own
    with pytest.raises(ArtifactError, match="defualt is no bundled model"):
        model_file("defualt")
    with pytest.raises(ArtifactError, match=r"x.safetensors does not exist; expected a checkpoint"):
        open_initial(own)


def test_the_bundled_model_says_what_it_is(bundled: tuple[PoseNet, ModelSpec]) -> None:
    start = open_initial(model_file("default"))
    network, spec = bundled
    assert start.joints == COCO_17.keypoints
    assert start.spec == spec
    assert network.backbone.config == start.backbone
    assert is_own_graph(start.path)


def check_rows(
    backbone: BackboneConfig, head: HeadName, rows: dict[str, int], folder: Path
) -> PoseNet:
    """A network of OWN, started from one of COCO's joints: known rows are its, others fresh."""
    torch.manual_seed(1)
    old = PoseNet(backbone, spec_of(COCO_17), head)
    path = folder / "old.safetensors"
    save_pose(path, old, spec_of(COCO_17))
    new = PoseNet(backbone, spec_of(OWN), head)
    fresh = {key: value.clone() for key, value in new.state_dict().items()}
    found = initialise(new, path, OWN.keypoints)
    assert found.joints == tuple(KNOWN)
    assert not found.fresh
    for key, count in rows.items():
        given, mine = old.state_dict()[key], new.state_dict()[key]
        for joint, name in enumerate(OWN.keypoints):
            here = mine[joint * count : (joint + 1) * count]
            if name in KNOWN:
                there = given[KNOWN[name] * count : (KNOWN[name] + 1) * count]
            elif "regression" in key:
                there = torch.zeros_like(here)
            else:
                there = fresh[key][joint * count : (joint + 1) * count]
            assert torch.equal(here, there), (key, name)
    return new


def test_a_simcc_head_keeps_the_rows_of_the_joints_that_both_know(tmp_path: Path) -> None:
    from cfpose_training.nets.hrnet import HRNetConfig

    tiny = HRNetConfig(width=4, stem=4, bottlenecks=1, modules=(1, 1, 1), blocks=1)
    rows = {"head.final_layer.weight": 1, "head.final_layer.bias": 1}
    check_rows(tiny, "simcc", rows, tmp_path)


def test_a_marginal_head_keeps_the_rows_of_the_joints_that_both_know(tmp_path: Path) -> None:
    rows = {
        "head.heat.out.weight": 1, "head.heat.out.bias": 1, "head.prior": 1,
        "head.regression.out.weight": 2, "head.regression.out.bias": 2,
    }  # fmt: skip
    check_rows(MoveNetConfig("lightning", frozen=0), "marginal", rows, tmp_path)


def test_a_head_of_as_many_other_joints_is_fresh(tmp_path: Path) -> None:
    others = Skeleton(tuple(f"point {n}" for n in range(17)), (), (), (0.05,) * 17)
    config = MoveNetConfig("lightning", frozen=0)
    old = PoseNet(config, spec_of(COCO_17), "marginal")
    save_pose(tmp_path / "old.safetensors", old, spec_of(COCO_17))
    new = PoseNet(config, spec_of(others), "marginal")
    before = new.head.heat.out.weight.clone()
    found = initialise(new, tmp_path / "old.safetensors", others.keypoints)
    assert found.joints == ()
    assert torch.equal(new.head.heat.out.weight, before)
    assert torch.equal(new.head.heat.hidden.weight, old.head.heat.hidden.weight)
    # without names of its own, the shape decides as ever
    initialise(new, tmp_path / "old.safetensors")
    assert torch.equal(new.head.heat.out.weight, old.head.heat.out.weight)


def test_the_bundled_graph_starts_other_joints(bundled: tuple[PoseNet, ModelSpec]) -> None:
    network, spec = bundled
    own = ModelSpec("own", OWN, spec.size_wh, split_ratio=spec.split_ratio)
    new = PoseNet(network.backbone.config, own, network.head_name)
    found = initialise(new, model_file("default"), OWN.keypoints)
    assert found.joints == tuple(KNOWN)
    crops = torch.randn(2, 3, spec.size_wh[1], spec.size_wh[0])
    with torch.no_grad():
        theirs, ours = network(crops), new.eval()(crops)
    for joint, name in enumerate(OWN.keypoints):
        if name in KNOWN:
            torch.testing.assert_close(ours.x_logits[:, joint], theirs.x_logits[:, KNOWN[name]])


def test_a_graph_of_ours_teaches(bundled: tuple[PoseNet, ModelSpec]) -> None:
    _, spec = bundled
    teacher, theirs = open_teacher(model_file("default"), spec, 1)
    assert theirs == spec
    assert isinstance(teacher, PoseNet)
    with pytest.raises(TrainingError, match="the teacher cfpose-s has skeleton"):
        open_teacher(model_file("default"), ModelSpec("own", OWN, spec.size_wh), 1)
