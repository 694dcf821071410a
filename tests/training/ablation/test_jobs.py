"""Runs of an ablation side by side: the same table, and what happens when one of them fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cfpose_sdk.errors import TrainingError
from cfpose_training import cli
from cfpose_training.ablation.jobs import OUTPUT_FILE, Starts, check_starts, plan
from cfpose_training.ablation.run import run_ablation
from cfpose_training.config import Recipe, load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.run.loop import RunOptions

TEACHER = """
[teacher]
name = "wide"
hrnet = { width = 8, stem = 4, bottlenecks = 1, modules = [1, 1, 1], blocks = 1 }
"""
TABLES = ("ablation.csv", "ablation.md")


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    text = tiny_recipe.read_text().replace('kind = "gaussian"', 'kind = "smoothed"')
    tiny_recipe.write_text(text.replace("epochs = 2", "epochs = 1") + TEACHER)
    return load_recipe(tiny_recipe)


def test_two_processes_and_one_give_the_same_table(
    recipe: Recipe, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DataOptions(tiny_root, tmp_path / "cache")
    tables = []
    for processes in (1, 2):
        out = tmp_path / f"with-{processes}"
        options = RunOptions(out, accelerator="cpu", threads=1)
        rows = run_ablation(recipe, ["baseline", "5"], [1], data, options, processes=processes)
        assert rows is not None
        tables.append([(out / name).read_bytes() for name in TABLES])
    assert tables[0] == tables[1]
    said = capsys.readouterr().out
    assert said.count("begins: ") == said.count("ends: ") == 3
    # the student's run needs no teacher, so it does not wait for it; the refiner's waits for both
    lines = [line for line in said.splitlines() if "begins" in line or "ends" in line]
    assert all("begins" in line for line in lines[:2])
    assert lines[-1].endswith("ends: seed1/stage2-teacher-on-labels")
    output = tmp_path / "with-2/seed1/stage1-labels" / OUTPUT_FILE
    assert "epoch 1 of 1" in output.read_text()


def test_a_run_that_fails_ends_all_and_is_named(
    recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    data = DataOptions(tiny_root, tmp_path / "cache")
    absent = Starts(teacher_init=tmp_path / "absent.pth")
    options = RunOptions(tmp_path / "out", accelerator="cpu", threads=1)
    with pytest.raises(TrainingError, match=r"the run teacher failed: cannot read .*absent\.pth"):
        run_ablation(recipe, ["5"], [1], data, options, absent, processes=2)
    assert not (tmp_path / "out" / "ablation.csv").exists()


def test_a_start_that_the_paper_has_is_asked_for(
    recipe: Recipe, tiny_recipe: Path, tiny_root: Path, tmp_path: Path
) -> None:
    tiny_recipe.write_text('start = "imagenet"\n' + tiny_recipe.read_text())
    paper = load_recipe(tiny_recipe)
    jobs, _ = plan(paper, ["5"], [1], own_teacher=True)
    with pytest.raises(TrainingError, match=r"wide starts from ImageNet.*give --teacher-init a f"):
        check_starts(paper, jobs, Starts(init=Path("w32.pth")))
    check_starts(paper, jobs, Starts(init=Path("w32.pth"), teacher_init=Path("w48.pth")))
    check_starts(paper, jobs, Starts(from_scratch=True))
    data = DataOptions(tiny_root, tmp_path / "cache")
    options = RunOptions(tmp_path / "out", accelerator="cpu", threads=1)
    with pytest.raises(TrainingError, match=r"tiny starts from ImageNet.*give --init a file.*SHA"):
        run_ablation(paper, ["baseline"], [1], data, options)
    assert not (tmp_path / "out").exists()
    rows = run_ablation(paper, ["baseline"], [1], data, options, Starts(from_scratch=True))
    assert rows is not None
    assert rows == run_ablation(
        recipe, ["baseline"], [1], data, dataclasses.replace(options, folder=tmp_path / "any")
    )


@pytest.mark.parametrize("command", ["teacher", "stage1"])
def test_the_stages_ask_for_it_too(
    recipe: Recipe, tiny_recipe: Path, tiny_root: Path, tmp_path: Path, command: str
) -> None:
    tiny_recipe.write_text('start = "imagenet"\n' + tiny_recipe.read_text())
    common = [command, "--recipe", str(tiny_recipe), "--data-root", str(tiny_root)]
    common += ["--out", str(tmp_path / "out"), "--threads", "1"]
    with pytest.raises(TrainingError, match="or --from-scratch to begin on random weights"):
        cli.main(common)
    with pytest.raises(TrainingError, match=r"w\.pth and --from-scratch contradict"):
        cli.main([*common, "--from-scratch", "--init", "w.pth"])
    assert cli.main([*common, "--from-scratch"]) == 0
