"""`make models`: commands that exist, each on files that are there or that an earlier one makes."""

from __future__ import annotations

import itertools
import shlex
import subprocess
from pathlib import Path

import pytest

from cfpose_training import cli as train
from cfpose_training.config import load_recipe

INPUTS = ("--init", "--teacher", "--student", "--finder")


@pytest.fixture
def commands(root: Path, tmp_path: Path) -> list[list[str]]:
    """What is run for the bundled models."""
    return dry_run(root, tmp_path, "cfpose-s")


def dry_run(root: Path, tmp_path: Path, name: str) -> list[list[str]]:
    """The words of each command, as `make --dry-run` prints them, in a checkout without runs."""
    make = ["make", "--file", f"training/recipes/{name}.mk", "--dry-run", "DATA=DATA"]
    run = subprocess.run(
        [*make, f"RUNS={tmp_path}/runs"], cwd=root, capture_output=True, text=True, check=True
    )
    return [shlex.split(line) for line in run.stdout.replace("\\\n", " ").splitlines()]


def _values(command: list[str], flag: str) -> list[str]:
    return [value for word, value in itertools.pairwise(command) if word == flag]


def test_each_command_finds_what_it_starts_from(commands: list[list[str]]) -> None:
    made = set[str]()
    for command in commands:
        if command[0] == "touch":  # ImageNet weights, out of their packages
            made.add(command[1])
        if command[0] == "cfpose-export":
            assert set(_values(command, "--checkpoint")) <= made
        if command[0] != "cfpose-train":
            continue
        for flag in INPUTS:
            assert set(_values(command, flag)) <= made, command
        (out,) = _values(command, "--out")
        kind = {"teacher": "teacher", "stage2": "refined", "finder": "finder"}.get(command[1])
        if command[1] == "average":
            kind = "finder" if "--finder" in command else "student"
        made |= {f"{out}/{kind or 'student'}.safetensors", out}
    assert [command[0] for command in commands].count("cfpose-export") == 2


def test_the_labels_are_those_that_the_recipes_read(
    commands: list[list[str]], root: Path, tmp_path: Path
) -> None:
    labels = {Path(out) for command in commands if command[1] == "label"
              for out in _values(command, "--out")}  # fmt: skip
    recipe = load_recipe(root / "training" / "recipes" / "cfpose-s.toml")
    wanted = {tmp_path / "runs" / "data" / source.annotations for source in recipe.sources}
    assert labels == {path for path in wanted if path.parent.name == "labels"}


def test_every_run_parses_and_goes_on(
    commands: list[list[str]], root: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(root)
    runs = [command for command in commands if command[0] == "cfpose-train"]
    for command in runs:
        assert "--resume" in command or command[1] == "average"
        if command[1] != "label":
            assert train.main([*command[1:], "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("writes ") == len([run for run in runs if run[1] != "label"])


def test_every_recipe_of_the_bundled_models_has_its_run(
    commands: list[list[str]], root: Path
) -> None:
    used = {Path(recipe).stem for command in commands for recipe in _values(command, "--recipe")}
    there = {path.stem for path in (root / "training" / "recipes").glob("*.toml")}
    others = {"cfpose-s-ablation", "improved-coco", "paper-coco", "paper-crowdpose"}
    others |= {"cfpose-s-movenet", "cfpose-s-turned", "cfpose-m"}  # of movenet.mk
    assert used == there - others


def test_the_students_on_movenet_have_their_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    commands = dry_run(root, tmp_path, "movenet")
    assert [command[1] for command in commands if command[0] == "cfpose-train"] == [
        "label", "label", "stage1", "stage1", "stage1",
    ]  # fmt: skip
    made = {out for command in commands for out in _values(command, "--out")}
    for command in commands:
        if command[0] == "cfpose-train" and command[1] == "stage1":
            assert train.main([*command[1:], "--dry-run"]) == 0
            (file,) = _values(command, "--recipe")
            recipe = load_recipe(file)
            assert recipe.pose.movenet is not None
            assert _values(command, "--init") == [
                f"DATA/labellers/movenet_{recipe.pose.movenet.body}.onnx"
            ]
            labels = {s.annotations for s in recipe.sources if s.annotations.startswith("labels")}
            assert {f"{tmp_path}/runs/data/{name}" for name in labels} <= made
