"""A run that is killed outright goes on from its last state to the very same weights."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from cfpose_training.checkpoints.files import load_tensors
from cfpose_training.config import load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.pose.train import train_stage1
from cfpose_training.run.loop import RunOptions
from cfpose_training.run.state import STATE_FILE

KILLED_SAVE = 8  # 5 batches an epoch, one save a batch and one an epoch: epoch 2, batch 2

# the state file is half written when the process dies
SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
from cfpose_training.config import load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.run.loop import RunOptions
from cfpose_training.pose.train import train_stage1

recipe, root, cache, folder, killed_save = sys.argv[1:]
save, count = torch.save, 0

def save_or_die(state, path):
    global count
    count += 1
    if count == int(killed_save):
        Path(path).write_bytes(b"half a state")
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, path)

torch.save = save_or_die
options = RunOptions(Path(folder), accelerator="cpu", threads=1, save_every_s=0.0)
train_stage1(load_recipe(recipe), DataOptions(Path(root), Path(cache)), options)
"""


def test_a_killed_run_ends_in_the_weights_of_an_uninterrupted_one(
    tiny_root: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    recipe, data = load_recipe(tiny_recipe), DataOptions(tiny_root, tmp_path / "cache")
    whole = train_stage1(recipe, data, RunOptions(tmp_path / "whole", accelerator="cpu", threads=1))
    folder = tmp_path / "killed"
    places = [tiny_recipe, tiny_root, data.cache, folder, KILLED_SAVE]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, places)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    state = torch.load(folder / STATE_FILE, weights_only=True)
    assert (state["epoch"], state["batch"], state["step"]) == (1, 1, 6)  # in the middle of epoch 2
    assert list(folder.glob(f".{STATE_FILE}.*"))  # what was half written
    options = RunOptions(folder, resume=True, accelerator="cpu", threads=1)
    resumed = train_stage1(recipe, data, options)
    assert whole is not None
    assert resumed is not None
    expected, found = load_tensors(whole)[0], load_tensors(resumed)[0]
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    with open(folder / "log.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert not list(folder.glob(f".{STATE_FILE}.*"))
