"""Tiny artifacts on disk, shared by the runtime's tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load_tiny_models() -> ModuleType:
    # tests are no packages, so the builder beside this file is loaded by its path
    name = "cfpose_tests_tiny_models"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("tiny_models.py"))
    if spec is None or spec.loader is None:
        raise RuntimeError("tiny_models.py is gone")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module tiny_models: SPEC, FINDER, save_pose_model, save_finder."""
    return _load_tiny_models()


@pytest.fixture(scope="session")
def pose_model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pose artifact that points all joints at the brightest pixel of the crop."""
    path: Path = tiny.save_pose_model(tmp_path_factory.mktemp("models") / "brightest.onnx")
    return path


@pytest.fixture(scope="session")
def finder_model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finder for 64 x 64 letterboxes: two people, a duplicate, a weak one, an empty one."""
    boxes = [[4, 4, 20, 60], [30, 10, 50, 40], [5, 4, 21, 60], [0, 0, 9, 9], [60, 8, 60, 30]]
    scores = [0.9, 0.8, 0.7, 0.2, 0.95]
    path: Path = tiny.save_finder(tmp_path_factory.mktemp("models") / "two.onnx", boxes, scores)
    return path
