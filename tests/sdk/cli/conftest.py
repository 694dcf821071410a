"""The command with tiny models, and two photos for it."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from cfpose_sdk import commands


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """A folder with two photos of 128 x 64; the finder sees two people in each."""
    folder = tmp_path / "street"
    folder.mkdir()
    rng = np.random.default_rng(7)
    for name in ("000000000139.png", "market.jpg"):
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (128, 64, 3), dtype=np.uint8))
    return folder


@pytest.fixture
def cfpose(pose_model: Path, finder_model: Path, monkeypatch: pytest.MonkeyPatch) -> type[Command]:
    """Runs the console command with the tiny models."""
    Command.models = ["--model", str(pose_model), "--detector", str(finder_model)]
    Command.monkeypatch = monkeypatch
    return Command


class Command:
    models: list[str]
    monkeypatch: pytest.MonkeyPatch

    @classmethod
    def predict(cls, *arguments: object) -> int:
        cls.monkeypatch.setattr(
            sys, "argv", ["cfpose", "predict", *map(str, arguments), *cls.models]
        )
        return commands.cfpose()
