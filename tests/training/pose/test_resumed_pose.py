"""Stage 2 draws noise: stopped anywhere, it goes on to the weights of an uninterrupted run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch

from cfpose_training.checkpoints.files import load_tensors, save_pose
from cfpose_training.config import load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.nets.pose_net import PoseNet
from cfpose_training.pose.train import pose_spec, train_stage2
from cfpose_training.run.loop import RunOptions


def test_noise_on_the_coarse_pose_goes_on_where_it_was(
    tiny_recipe: Path, tiny_root: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(tiny_recipe)
    optim = dataclasses.replace(recipe.stage2.optim, batch_size=8)
    stage2 = dataclasses.replace(recipe.stage2, init_noise_px=2.0, optim=optim)
    recipe = dataclasses.replace(recipe, stage2=stage2)
    spec = pose_spec(recipe)
    student = tmp_path / "student.safetensors"
    save_pose(student, PoseNet(recipe.pose.hrnet, spec), spec)
    data = DataOptions(tiny_root, tmp_path / "cache")
    tensors = []
    for name, minutes in (("whole", math.inf), ("parts", 0.0)):
        refined, calls = None, 0
        while refined is None:
            options = RunOptions(
                tmp_path / name, resume=True, max_minutes=minutes, accelerator="cpu", threads=1
            )
            refined, calls = train_stage2(recipe, student, data, options), calls + 1
            torch.rand(3)  # a later process has drawn other numbers before
        assert calls == (1 if name == "whole" else 5)  # one a batch, and one to end
        tensors.append(load_tensors(refined)[0])
    for key, value in tensors[0].items():
        assert torch.equal(value, tensors[1][key]), key
