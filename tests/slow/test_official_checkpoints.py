"""SimCC's own networks, with random weights: their files through convert, export and bench."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.conftest import write_tiny_data


def run(command: str, *arguments: str, folder: Path) -> str:
    code = f"import sys; from cfpose_sdk.commands import {command}; sys.exit({command}())"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def filled(key: str, shape: list[int]) -> torch.Tensor:
    """The golden numbers' weights, with higher peaks."""
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if key.endswith("running_var"):
        values = draw.uniform(0.5, 1.5, shape)
    elif key.endswith("weight") and len(shape) == 1:
        values = draw.uniform(0.5, 1.0, shape)
    elif key.endswith("weight"):
        values = draw.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
        values *= 2 if key.startswith("mlp_head") else 1
    else:
        values = 0.1 * draw.standard_normal(shape)
    return torch.from_numpy(values).float()


@pytest.mark.parametrize("width", ["w32", "w48"])
def test_the_documented_recipe(shared_dir: Path, tmp_path: Path, width: str) -> None:
    shapes = json.loads(
        (shared_dir / "golden" / f"hrnet_{width}_simcc_state_dict.json").read_text()
    )
    file = f"pose_hrnet_{width}_256x192.pth"
    torch.save({key: filled(key, shape) for key, shape in shapes.items()}, tmp_path / file)
    write_tiny_data(tmp_path, photos=2)
    people = json.loads((tmp_path / "people.json").read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox")
    boxes = [{**{k: p[k] for k in keys}, "score": s} for p in people for s in (0.9, 0.6)]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    run("train", "convert", file, "-o", "simcc.safetensors", folder=tmp_path)
    options = ["--flip-test", "--min-confidence", "0", "-o", "simcc.onnx"]
    run("export", "onnx", "--checkpoint", "simcc.safetensors", *options, folder=tmp_path)
    command = ["--dataset", "people.json", "--preset", "paper", "--model", "simcc.onnx"]
    command += ["--boxes", "boxes.json", "--repeats", "0", "--json", "report.json"]
    run("bench", *command, folder=tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["protocol"]["flip_test_method"] == "in the graph"
    assert report["models"][0]["accuracy"]["poses"] == 2  # of four boxes, two repeat the others
    millions = {"w32": 31.29, "w48": 66.35}[width]
    assert report["models"][0]["params"] / 1e6 == pytest.approx(millions, rel=0.01)
