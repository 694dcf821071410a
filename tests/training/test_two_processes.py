"""Two processes under torchrun train to the weights of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from cfpose_training.run_state import STATE_FILE

PROGRAM = """
import sys
from pathlib import Path
import torch
from torch import nn
from cfpose_training.optim_config import OptimConfig
from cfpose_training.loop import RunOptions, fit, leave_processes
from cfpose_training.stages import Stage

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


def run(folder: Path, processes: int) -> None:
    done = launch(folder, processes, PROGRAM)
    assert done.returncode == 0, done.stderr[-3000:]


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
