"""CrowdPose's figures against those of xtcocotools, the evaluator that others quote.

Its figures are in golden/xtcocotools.json, since its wheel does not import under numpy 2;
crowdpose_cases.py says how they were made. Where it does import, they are made again.

Two things it does differently on purpose or by accident, and we do not: it drops a pose whose joint
scores are all 0, and it rounds the levels to four digits and calls an empty level −1.
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cfpose_bench.accuracy.crowdpose import evaluate_crowdpose, photos_by_level
from cfpose_bench.data.annotations import read_annotations
from cfpose_sdk.skeleton import CROWDPOSE_14

FIGURES = ("AP", "AP50", "AP75", "AR", "AP_easy", "AP_medium", "AP_hard")


def _load_cases() -> ModuleType:
    path = Path(__file__).parents[1] / "crowdpose_cases.py"
    spec = importlib.util.spec_from_file_location("cfpose_tests_crowdpose_cases", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = _load_cases()
RECORD: dict[str, Any] = json.loads(cases.GOLDEN.read_text())
SEEDS = [name for name in RECORD["cases"] if name.isdigit()]


@pytest.mark.parametrize("seed", SEEDS)
def test_equals_xtcocotools(seed: str) -> None:
    made, golden = cases.case(int(seed)), RECORD["cases"][seed]
    assert cases.digest(made) == golden["sha256"], "the case is not the one xtcocotools saw"
    truth, results = made
    found = evaluate_crowdpose(truth, results)
    expected = golden["figures"]
    for name in FIGURES:
        assert getattr(found, name) == pytest.approx(expected[name], abs=1e-9), name
    for level in ("easy", "medium", "hard"):
        rounded = round(getattr(found, f"AP_{level}"), 4)
        assert rounded == pytest.approx(expected[f"{level}_rounded"], abs=1e-9)


def test_the_cases_hold_what_they_should() -> None:
    """Or the comparison above proves little."""
    figures = [RECORD["cases"][seed]["figures"] for seed in SEEDS]
    assert len(SEEDS) >= 8
    assert len({f["AP"] for f in figures}) == len(figures)
    for name in FIGURES:
        assert all(0.02 < f[name] < 0.9 for f in figures), name
    for seed in SEEDS:
        truth, results = cases.case(int(seed))
        read = read_annotations(truth)
        assert all(photos_by_level(read).values())
        assert not any("area" in person for person in truth["annotations"])
        per_photo = [sum(r["image_id"] == i["id"] for r in results) for i in truth["images"]]
        assert max(per_photo) > 20
        assert min(per_photo) == 0
        scores = [result["score"] for result in results]
        assert len(set(scores)) < len(scores)
    people = [p for seed in SEEDS for p in cases.case(int(seed))[0]["annotations"]]
    assert any(p["num_keypoints"] == 0 and any(p["keypoints"]) for p in people)
    assert any(p["iscrowd"] for p in people)


def test_the_constants_are_the_skeletons() -> None:
    assert [sigma / 10 for sigma in cases.SIGMAS] == pytest.approx(list(CROWDPOSE_14.oks_sigmas))


def test_a_pose_of_zero_joint_scores_counts_here_and_not_there() -> None:
    """It stays a false pose: a joint's score says how sure the model is, not that it is there."""
    made, golden = cases.unscored_pose(), RECORD["cases"]["unscored pose"]
    assert cases.digest(made) == golden["sha256"]
    found = evaluate_crowdpose(*made)
    assert golden["figures"]["AP"] == pytest.approx(1.0)
    assert pytest.approx(0.5) == found.AP
    (wrong,) = (r for r in made[1] if not any(r["keypoints"][2::3]))
    wrong["keypoints"][2] = 0.01  # one joint's score is enough for both to agree
    assert pytest.approx(0.5) == evaluate_crowdpose(*made).AP
    assert golden["figures"]["AP_easy"] == -1
    assert math.isnan(found.AP_easy or 0.0)


@pytest.mark.filterwarnings("ignore")  # it leaves files open
def test_xtcocotools_still_says_so() -> None:
    try:
        import xtcocotools.cocoeval  # type: ignore[import-untyped]  # noqa: F401
    except (ImportError, ValueError) as error:  # ValueError: built for another numpy
        pytest.skip(f"xtcocotools cannot be imported: {error}")
    for seed in SEEDS:
        expected = RECORD["cases"][seed]["figures"]
        assert cases.xtcocotools_figures(cases.case(int(seed))) == pytest.approx(expected, abs=1e-9)
