"""Whatever a data folder or a recipe holds: a report, people, or an error of cfpose's tree."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from cfpose_sdk import commands
from cfpose_sdk.errors import CfposeError
from cfpose_sdk.skeleton import COCO_17
from cfpose_training.config import Source, load_recipe
from cfpose_training.data.people import load_people
from tests.any_values import any_json, any_text, bent, bent_bytes, draws, seeds


@pytest.fixture
def place(tiny_root: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the tiny data set, as the working folder."""
    monkeypatch.chdir(tiny_root)
    return tiny_root


@draws(500)
@given(seeds)
def test_any_annotations(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rng: random.Random,
) -> None:
    record = json.loads((place / "people.json").read_text())
    record["images"], record["annotations"] = record["images"][:3], record["annotations"][:3]
    changed: Any = any_json(rng) if rng.random() < 0.1 else bent(rng, record)
    data = json.dumps(changed).encode()
    for name in ("any.json", "annotations/person_keypoints_val2017.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(bent_bytes(rng, data) if rng.random() < 0.1 else data)
    assert _check(monkeypatch, str(place)) in (0, 1)
    assert "known data sets are here" in capsys.readouterr().out
    try:
        people = load_people([Source("any", "any.json", "images")], place, COCO_17)
    except CfposeError:
        return
    assert people.joints.shape == (len(people), 17, 3)
    assert (people.boxes[:, 2:] > people.boxes[:, :2]).all()


@draws(200)
@given(seeds)
def test_any_folder_and_recipe(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rng: random.Random,
) -> None:
    words = [any_text(rng)]
    if rng.random() < 0.5:
        words += [f"--recipe={any_text(rng)}"]
    assert _check(monkeypatch, *words) in (0, 1, 2)
    capsys.readouterr()


def _check(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    monkeypatch.setattr(sys, "argv", ["cfpose-train", "data", "check", *words])
    try:
        return commands.train()
    except SystemExit as end:  # argparse
        return end.code


@draws(400)
@given(seeds)
def test_any_recipe(place: Path, tiny_recipe: Path, rng: random.Random) -> None:
    lines = tiny_recipe.read_text().splitlines()
    values = (
        "0",
        "-1",
        "nan",
        "-inf",
        "1e999",
        "true",
        "[]",
        "{}",
        "'x'",
        "[1, 2]",
        f"1{'0' * 400}",
    )
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        key, equals, _ = lines[at].partition("=")
        lines[at] = f"{key}= {rng.choice(values)}" if equals else rng.choice(("", "[x]", "\0"))
    data = "\n".join(lines).encode()
    Path("any.toml").write_bytes(bent_bytes(rng, data) if rng.random() < 0.2 else data)
    try:
        recipe = load_recipe("any.toml")
    except CfposeError:
        return
    assert recipe.stage1.epochs >= 1
