"""Two processes under torchrun train as one does, and write as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from cfpose_training.checkpoints.files import load_tensors
from cfpose_training.run.state import STATE_FILE

PROGRAM = """
import sys
from pathlib import Path
import torch
from torch import nn
from cfpose_training.config import OptimConfig
from cfpose_training.run.loop import RunOptions, fit
from cfpose_training.processes import leave_processes
from cfpose_training.stages.base import Stage

class Line(Stage):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trainable = nn.Linear(3, 1)
    def forward(self, batch):
        x = batch["x"]
        loss = (self.trainable(x) - x.sum(1, keepdim=True)).square().mean()
        return {"loss": loss, "fit": loss.detach()}

def batches(epoch, start, shard):
    generator = torch.Generator().manual_seed(epoch)
    drawn = [torch.randn(8, 3, generator=generator) for _ in range(5)][start:]
    return ({"x": x[shard.rank :: shard.world]} for x in drawn)

called = []
stage = Line()
folder, devices = Path(sys.argv[1]), int(sys.argv[2])
config = OptimConfig(epochs=3, lr=0.05, ema_decay=0.9, milestones=(2,))
options = RunOptions(folder, accelerator="cpu", devices=devices)
try:
    done = fit(stage, batches, 5, config, options, after_epoch=lambda e, m: called.append(e) or {})
except BaseException:
    leave_processes()
    raise
rank = int(__import__("os").environ.get("RANK", 0))
assert done and called == ([0, 1, 2] if rank == 0 else []), called
torch.save(stage.trainable.state_dict(), folder / f"weights{rank}.pt")
leave_processes()
"""

# each process: the gradient of every loss on its share of samples, of which the second has little
LOSSES = """
import os, sys
from pathlib import Path
import torch
from torch import nn
from cfpose_training.finder import stage as finder_stage
from cfpose_training.config import LabelConfig
from cfpose_training.losses import refinement_loss, simcc_loss
from cfpose_training.nets.finder import FinderNet, FinderNetConfig
from cfpose_training.processes import leave_processes

finder_stage.JITTER_SIGMA = 0.0  # drawn in each process
folder, world = Path(sys.argv[1]), int(sys.argv[2])
rank = int(os.environ.get("RANK", 0))
if world > 1:
    torch.distributed.init_process_group("gloo")
generator = torch.Generator().manual_seed(1)
weight = torch.ones(4, 3)
weight[1::2, 1:] = 0
xy = 8 * torch.rand(4, 3, 2, generator=generator)
crops = torch.randn(4, 3, 16, generator=generator)
mine = slice(rank, None, world)

def simcc(kind):
    net = nn.Linear(16, 16)
    logits = net(crops[mine])
    return net, simcc_loss((logits, logits), xy[mine], weight[mine], 2.0, LabelConfig(kind))

def refinement():
    net = nn.Linear(16, 2)
    poses = [net(crops[mine])] * 3
    return net, refinement_loss(poses, xy[mine], weight[mine], (0.3, 0.5, 1.0))

def finder():
    heat, box_weight = torch.zeros(4, 8, 8), torch.zeros(4, 8, 8)
    box = torch.tensor([8.0, 8.0, 56.0, 56.0]).reshape(1, 4, 1, 1).repeat(4, 1, 8, 8)
    for picture, people in enumerate((5, 1, 6, 0)):
        heat[picture].view(-1)[range(9, 9 + 2 * people, 2)] = 1
    batch = {
        "image": torch.randint(0, 256, (4, 64, 64, 3), generator=generator).byte(),
        "heat": heat, "heat_weight": torch.ones_like(heat), "box": box, "box_weight": heat,
    }
    net = FinderNet(FinderNetConfig((8,) * 5, (1,) * 5, head_channels=8, box_grid=3))
    batch = {key: value[mine] for key, value in batch.items()}
    return net, finder_stage.FinderStage(net).eval()(batch)["loss"]

found = {}
losses = {kind: lambda kind=kind: simcc(kind) for kind in ("smoothed", "gaussian", "gaussian_mean")}
for name, loss in {**losses, "refinement": refinement, "finder": finder}.items():
    torch.manual_seed(0)
    net, value = loss()
    value.backward()
    found[name] = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
torch.save(found, folder / f"gradients{rank}.pt")
leave_processes()
"""

# whoever writes a checkpoint says so
STAGES = """
import os, sys
from pathlib import Path
import cfpose_training.checkpoints.files as checkpoint
from cfpose_training.cli import main
from cfpose_training.config import load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.run.loop import RunOptions
from cfpose_training.pose.train import train_stage1

folder, devices = Path(sys.argv[1]), sys.argv[2]
recipe, root, cache = (folder.parent / name for name in ("tiny.toml", "data", "cache"))
save = checkpoint.save_tensors

def told(path, *rest):
    with open(folder / "writers.txt", "a") as file:
        file.write(f"{path.name} {os.environ['RANK']}\\n")
    save(path, *rest)

checkpoint.save_tensors = told
options = RunOptions(folder / "s1", accelerator="cpu", devices=int(devices))
student = train_stage1(load_recipe(recipe), DataOptions(root, cache), options)
assert student.is_file()
main([
    "stage2", "--recipe", str(recipe), "--data-root", str(root), "--cache", str(cache),
    "--out", str(folder / "s2"), "--student", str(student), "--accelerator", "cpu",
    "--devices", devices,
])
"""

FAILS = """
    calls = 0
    def fails(self):
        self.calls += 1
        return self.calls == 8 and __import__("os").environ.get("RANK") == "0"
    def forward"""


def launch(folder: Path, processes: int, program_text: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    program = folder.parent / "program.py"
    program.write_text(program_text)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(program)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, str(folder), str(processes)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def run(folder: Path, processes: int, program_text: str = PROGRAM) -> str:
    done = launch(folder, processes, program_text)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_equal_one(tmp_path: Path) -> None:
    run(tmp_path / "one", 1)
    run(tmp_path / "two", 2)
    one = torch.load(tmp_path / "one" / "weights0.pt", weights_only=True)
    for rank in range(2):
        other = torch.load(tmp_path / "two" / f"weights{rank}.pt", weights_only=True)
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-6)
    log = (tmp_path / "two" / "log.csv").read_text().splitlines()
    assert len(log) == 4  # the head and one row an epoch, not one a process


def test_one_that_fails_ends_all_and_keeps_the_state(tmp_path: Path) -> None:
    """The first process stops by itself, in a step that the second is in the midst of."""
    spoilt = "        loss = loss * float('nan') if self.fails() else loss\n        return {"
    failing = PROGRAM.replace("        return {", spoilt).replace("    def forward", FAILS)
    done = launch(tmp_path / "two", 2, failing)
    assert done.returncode != 0
    assert "a loss is not finite: epoch 2, batch 3" in done.stderr
    assert "terminate called" not in done.stderr
    state = torch.load(tmp_path / "two" / STATE_FILE, weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 5)


def test_a_joint_or_person_weighs_the_same_in_every_process(tmp_path: Path) -> None:
    run(tmp_path / "one", 1, LOSSES)
    run(tmp_path / "two", 2, LOSSES)
    one, *two = (
        torch.load(tmp_path / place, weights_only=True)
        for place in ("one/gradients0.pt", "two/gradients0.pt", "two/gradients1.pt")
    )
    for name, whole in one.items():
        averaged = (two[0][name] + two[1][name]) / 2  # as the wrapped module averages them
        torch.testing.assert_close(averaged, whole, rtol=1e-4, atol=1e-6, msg=name)


def test_the_first_process_alone_writes_the_results(tiny_recipe: Path, tiny_root: Path) -> None:
    folder = tiny_recipe.parent / "runs"
    text = run(folder, 2, STAGES)
    writers = (folder / "writers.txt").read_text().split("\n")
    assert sorted({line for line in writers if line and "best" not in line}) == [
        "refined.safetensors 0",
        "student.safetensors 0",
    ]
    assert text.count("wrote ") == 1
    measured = torch.load(folder / "s1" / STATE_FILE, weights_only=True)["ema"]
    tensors, _ = load_tensors(folder / "s1" / "student.safetensors")
    assert all(torch.equal(tensors[key], value) for key, value in measured.items())
