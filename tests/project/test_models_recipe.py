"""`make models`: commands that exist, each on files that are there or that an earlier one makes."""

from __future__ import annotations

import itertools
import shlex
import subprocess
from pathlib import Path

import pytest

from cfpose_sdk.files import digest
from cfpose_training import cli as train
from cfpose_training.config import load_recipe

INPUTS = ("--init", "--teacher", "--student", "--finder")


@pytest.fixture
def commands(root: Path, tmp_path: Path) -> list[list[str]]:
    """What is run for the bundled models."""
    run = make(root, "--dry-run", "DATA=DATA", f"RUNS={tmp_path}/runs")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if not line.startswith("bad=0;")]


def make(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`make models`' own file, with some variables and options."""
    command = ["make", "--file", "training/recipes/models.mk", *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


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
        given = {value for flag in INPUTS for value in _values(command, flag)}
        assert {value for value in given if not value.startswith("DATA/")} <= made, command
        (out,) = _values(command, "--out")
        kind = {"finish": "finished", "finder": "finder"}.get(command[1])
        if command[1] == "average":
            kind = "finder" if "--finder" in command else "student"
        made |= {f"{out}/{kind or 'student'}.safetensors", out}
    assert [command[0] for command in commands].count("cfpose-export") == 3


def test_the_labels_are_those_that_the_recipes_read(
    commands: list[list[str]], root: Path, tmp_path: Path
) -> None:
    labels = {Path(out) for command in commands if command[1] == "label"
              for out in _values(command, "--out")}  # fmt: skip
    for name in ("cfpose-s", "cfpose-m"):
        recipe = load_recipe(root / "training" / "recipes" / f"{name}.toml")
        wanted = {tmp_path / "runs" / "data" / source.annotations for source in recipe.sources}
        assert labels == {path for path in wanted if path.parent.name == "labels"}


def test_every_run_parses_and_goes_on(
    commands: list[list[str]], root: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(root)
    runs = [command for command in commands if command[0] == "cfpose-train"]
    for command in runs:
        assert "--resume" in command or command[1] in ("average", "finish")
        if command[1] != "label":
            assert train.main([*command[1:], "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("writes ") == len([run for run in runs if run[1] != "label"])


def test_every_recipe_of_the_bundled_models_has_its_run(
    commands: list[list[str]], root: Path
) -> None:
    used = {Path(recipe).stem for command in commands for recipe in _values(command, "--recipe")}
    there = {path.stem for path in (root / "training" / "recipes").glob("*.toml")}
    others = {"improved-coco", "paper-coco", "paper-crowdpose"}
    others |= {"cfpose-s-ablation", "cfpose-s-ablation-start"}
    assert used == there - others


def test_the_students_begin_on_the_files_that_their_recipes_know(
    commands: list[list[str]], root: Path
) -> None:
    runs = [command for command in commands if command[1] == "stage1"]
    assert len(runs) == 2
    for command in runs:
        recipe = load_recipe(root / _values(command, "--recipe")[0])
        assert recipe.pose.movenet is not None
        body = recipe.pose.movenet.body
        assert _values(command, "--init") == [f"DATA/labellers/movenet_{body}.onnx"]
        (start,) = recipe.started_from
        assert body in start.name.lower()
        file = root.parent / "shared" / "data" / "labellers" / f"movenet_{body}.onnx"
        if file.is_file():
            assert digest(file) == start.sha256


def test_what_is_missing_is_said_before_anything_runs(root: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("coco/images/train", "coco/images/val", "unlabelled/people", "labellers"):
        (data / name).mkdir(parents=True)
    run = make(root, f"DATA={data}", f"CCP={tmp_path}/ccp", f"RUNS={tmp_path}/runs")
    assert run.returncode != 0
    missing = {line.split(" is missing: ")[0] for line in run.stderr.splitlines() if ": " in line}
    assert {f"{tmp_path}/ccp", f"{data}/labellers/tinypose_256x192_v1.onnx"} <= missing
    assert f"{data}/unlabelled/no_people" in missing
    assert f"{data}/coco/images/train" not in missing
    assert "clone bearpaw/clothing-co-parsing" in run.stderr
    assert not (tmp_path / "runs").exists()
