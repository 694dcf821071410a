"""The evaluator at full scale, by cases whose AP follows from how they were made."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from cfpose_bench.accuracy.coco import evaluate


@pytest.fixture(scope="module")
def script(root: Path) -> ModuleType:
    path = root / "studies/evaluator_scale.py"
    spec = importlib.util.spec_from_file_location("evaluator_scale", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_2051_photos_have_the_ap_that_they_must(script: ModuleType, shared_dir: Path) -> None:
    path = shared_dir / "data/coco/person_keypoints_val_labels_only.json"
    for name, (truth, poses, expected) in script.cases(path).items():
        found = evaluate(truth, poses)
        assert (found.images, found.instances) == (2051, 4732)
        assert pytest.approx(expected, abs=1e-9) == found.AP, name
    assert 0.5 < expected < 0.51  # half of the people were dropped


def test_the_committed_run_met_its_answers(root: Path) -> None:
    record = json.loads((root / "studies/results/evaluator-2051-photos.json").read_text())
    assert record["cases"].keys() == {"exact", "shifted", "half dropped"}
    for case in record["cases"].values():
        assert case["AP"] == pytest.approx(case["expected_AP"], abs=1e-9)
        assert case["wall_s"] > 0
    assert record["peak_rss_mb"] > 0
