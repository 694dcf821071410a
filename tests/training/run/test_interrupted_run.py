"""Ctrl-C within a batch loses that batch alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cfpose_training.data.crop_dataset import Batch
from cfpose_training.run.state import STATE_FILE
from tests.training.run.test_loop import CONFIG, Line, column, run


class Interrupted(Line):
    """Batch norm and dropout, and Ctrl-C in the forward or the backward pass of one batch."""

    def __init__(self, place: str = "", batch: int = 9) -> None:
        super().__init__()
        self.trainable = nn.Sequential(
            nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1)
        )
        self.place, self.left = place, batch

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().forward(batch)
        self.left -= 1
        if not self.left and self.place == "forward":
            raise KeyboardInterrupt
        if not self.left and self.place == "backward":
            losses["loss"].register_hook(self.interrupt)
        return losses

    def interrupt(self, gradient: Tensor) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_a_run_interrupted_in_a_batch_goes_on_to_the_same_weights_and_log(
    tmp_path: Path, place: str
) -> None:
    whole = run(tmp_path / "whole", CONFIG, Interrupted()).trainable.state_dict()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", CONFIG, Interrupted(place))
    state = torch.load(tmp_path / "cut" / STATE_FILE, weights_only=True)
    assert (state["epoch"], state["batch"]) == (1, 2)  # the batch alone is lost
    rest = run(tmp_path / "cut", CONFIG, Interrupted(), resume=True).trainable.state_dict()
    assert all(torch.equal(rest[key], value) for key, value in whole.items())
    assert column(tmp_path / "cut", "loss") == column(tmp_path / "whole", "loss")
