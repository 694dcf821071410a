"""What training began from: by the file's hash, and through our own checkpoints and graphs."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import SPEC_KEY, FinderSpec, ModelSpec, Start
from cfpose_training.checkpoints.files import save_finder, save_pose
from cfpose_training.checkpoints.starts import inherited, starts_of
from cfpose_training.config import load_recipe
from cfpose_training.nets.finder import FinderNet, FinderNetConfig
from cfpose_training.nets.hrnet import HRNetConfig
from cfpose_training.nets.pose_net import PoseNet

TRUNK = Start("trunk", "https://trunks.example", "0a" * 32, "Apache-2.0")
SPEC = ModelSpec("tiny", COCO_17, (64, 64), started_from=(TRUNK,))


def graph(path: Path, spec: ModelSpec | None = None) -> Path:
    """An ONNX file of one node, ours where it carries a spec."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N"]) for n in "xy")
    model = helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    )
    if spec is not None:
        onnx.helper.set_model_props(model, {SPEC_KEY: spec.to_json()})
    onnx.save_model(model, path)
    return path


def test_a_file_of_others_is_the_start(tmp_path: Path) -> None:
    path = graph(tmp_path / "theirs.onnx")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert starts_of(path, [TRUNK]) == (Start("theirs", "not stated", sha256, "not stated"),)
    known = dataclasses.replace(TRUNK, sha256=sha256)
    assert starts_of(path, [TRUNK, known]) == (known,)


def test_our_own_files_hand_on_their_record(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = HRNetConfig(width=4, stem=8, bottlenecks=1, modules=(1, 1, 1), blocks=1)
    save_pose(tmp_path / "pose.safetensors", PoseNet(config, SPEC), SPEC)
    finder = FinderNetConfig(channels=(8, 8, 8, 8, 8), blocks=(1, 1, 1, 1, 1), head_channels=8)
    spec = FinderSpec("f", (64, 64), threshold=0.5, nms_iou=0.5, started_from=(TRUNK,))
    save_finder(tmp_path / "finder.safetensors", FinderNet(finder), spec)
    graph(tmp_path / "pose.onnx", SPEC)
    for name in ("pose.safetensors", "finder.safetensors", "pose.onnx"):
        assert starts_of(tmp_path / name, []) == (TRUNK,)
    scratch = graph(tmp_path / "scratch.onnx", dataclasses.replace(SPEC, started_from=()))
    assert starts_of(scratch, [TRUNK]) == ()


def test_several_hand_on_each_start_once() -> None:
    other = dataclasses.replace(TRUNK, name="other")
    old = dataclasses.replace(SPEC, started_from=())
    both = dataclasses.replace(SPEC, started_from=(other, TRUNK))
    assert inherited([SPEC, both], []) == (TRUNK, other)
    assert inherited([old], [other]) == (other,)
    assert inherited([SPEC], [other]) == (TRUNK,)


def test_a_recipe_names_what_it_starts_from(tiny_recipe: Path, tmp_path: Path) -> None:
    table = "started_from = [{ name = 'x', source = 'y', sha256 = '" + "0a" * 32
    path = tmp_path / "r.toml"
    path.write_text(f"{table}', license = 'MIT' }}]\n{tiny_recipe.read_text()}")
    assert load_recipe(path).started_from == (Start("x", "y", "0a" * 32, "MIT"),)
    path.write_text(f"{table}', licence = 'MIT' }}]\n{tiny_recipe.read_text()}")
    with pytest.raises(TrainingError, match="not usable"):
        load_recipe(path)
