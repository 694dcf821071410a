"""Plans: every command parses, recipes say what a step trains, targets are the paper's."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from cfpose_bench import cli as bench_cli
from cfpose_bench.data.annotations import is_crowdpose
from cfpose_export import cli as export_cli
from cfpose_sdk.errors import DatasetError, InputError, TrainingError
from cfpose_training import cli as train_cli
from cfpose_training.ablation.schemes import SCHEMES
from cfpose_training.cli import main
from cfpose_training.config import load_recipe, teacher_recipe
from cfpose_training.fit.estimate import network_cost
from cfpose_training.reproduce.estimate import Networks, costs
from cfpose_training.reproduce.miniature import small, write_data
from cfpose_training.reproduce.plan import (
    BOXES,
    Options,
    Plan,
    boxes_of,
    check_files,
    imagenet_file,
    make_plan,
)
from cfpose_training.reproduce.targets import TABLES
from cfpose_training.reproduce.variants import (
    in_layout,
    paper_recipe,
    recipe_text,
    write_variant,
)

PARSERS = {"train": train_cli._parser, "export": export_cli._parser, "bench": bench_cli._parser}


def options(dataset: str = "crowdpose", table: int = 4, **others: object) -> Options:
    chosen = next(each for each in TABLES[dataset] if each.number == table)  # type: ignore[index]
    given = {"out": Path("out"), "data_root": Path("data"), **others}
    return Options(dataset=dataset, table=chosen, **given)  # type: ignore[arg-type]


def planned(**others: object) -> Plan:
    given = options(**others)  # type: ignore[arg-type]
    return make_plan(given, paper_recipe(given.dataset))


def test_the_targets_are_the_papers() -> None:
    four = next(table for table in TABLES["crowdpose"] if table.number == 4)
    rows = {target.key: tuple(target.figures.values()) for target in four.targets}
    assert rows.pop("teacher") == ()
    assert rows == {
        "baseline": (66.7, 82.1, 72.0), "1": (67.6, 85.2, 72.7), "2": (67.3, 84.1, 72.3),
        "3": (67.7, 84.8, 72.6), "4": (68.2, 86.3, 73.3), "5": (67.9, 85.8, 73.0),
        "6": (68.7, 86.7, 73.5),
    }  # fmt: skip
    assert rows.keys() == SCHEMES.keys()
    coco = {target.key: target.figures["AP"] for target in TABLES["coco"][0].targets}
    assert coco == {"baseline": 75.3, "teacher": 75.9, "6": 76.2}


def test_every_command_is_one_that_its_program_takes() -> None:
    plans = [
        planned(seeds=(1, 2), threads=2, cache=Path("none"), accelerator="cpu"),
        planned(dataset="coco", table=1, from_scratch=True, boxes="gt"),
        planned(dataset="coco", table=1, official=(Path("pose_hrnet_w48_256x192.pth"),)),
        planned(miniature=True),
    ]
    for plan in plans:
        names = [step.name for step in plan.steps]
        assert len(set(names)) == len(names)
        for number, step in enumerate(plan.steps):
            assert set(step.needs) <= set(names[:number])
            program, *words = shlex.split(step.command)
            assert program == f"cfpose-{step.program}"
            PARSERS[step.program]().parse_args(words)
            if "--recipe" in words:
                assert Path(words[words.index("--recipe") + 1]).name in plan.recipes


def test_a_run_that_rows_share_is_trained_once() -> None:
    plan = planned(seeds=(1, 2, 3))
    trained = [step for step in plan.steps if step.recipe is not None]
    assert len(trained) == 1 + 3 * (4 + 3)
    rows = {row.target.key: row for row in plan.rows}
    assert len(rows) == 8
    assert len(rows["6"].measured) == 3
    assert rows["1"].trained[:2] == ("train seed1/stage1-labels", "train seed1/stage2-gt-on-labels")
    assert "train teacher" in rows["5"].trained
    assert "train teacher" not in rows["1"].trained
    coco = planned(dataset="coco", table=1)
    assert [row.target.title for row in coco.rows] == ["SimCC-W32", "teacher, SimCC-W48", "ours"]
    assert [len(planned(schemes=("6",)).rows)] == [2]
    with pytest.raises(TrainingError, match="there is no scheme '7'"):
        planned(schemes=("7",))


def test_a_step_trains_what_its_name_says(tmp_path: Path) -> None:
    plan = planned(seeds=(2,))
    found = {}
    for name, recipe in plan.recipes.items():
        write_variant(tmp_path / name, recipe)
        found[name] = load_recipe(tmp_path / name)
        assert found[name] == recipe
    limbs = found["seed2-stage1-fea-l1-cst.toml"]
    assert (limbs.stage1.seed, limbs.stage2.optim.seed) == (2, 2)
    assert (limbs.distill.kd_fea, limbs.distill.kd_l1, limbs.distill.kd_cst) == (True, True, True)
    assert not found["seed2-stage1-labels.toml"].distill.active
    assert found["seed2-stage2-gt-on-labels.toml"].stage2.gcn == "gt"
    assert found["check.toml"] == paper_recipe("crowdpose")
    write_variant(tmp_path / "check.toml", found["check.toml"])  # the same again
    with pytest.raises(TrainingError, match="another recipe than this plan's"):
        write_variant(tmp_path / "check.toml", limbs)


@pytest.mark.parametrize("name", ["coco", "crowdpose"])
def test_a_recipe_is_read_back_as_it_was_written(name: str, tmp_path: Path, root: Path) -> None:
    for file in sorted((root / "training" / "recipes").glob("*.toml")):
        recipe = load_recipe(file)
        (tmp_path / "again.toml").write_text(recipe_text(recipe))
        assert load_recipe(tmp_path / "again.toml") == recipe, file
    assert paper_recipe(name) == load_recipe(  # type: ignore[arg-type]
        root / "training" / "recipes" / f"paper-{name}.toml"
    )


def test_the_data_set_is_found_where_it_is(tmp_path: Path) -> None:
    recipe = paper_recipe("crowdpose")
    assert in_layout(recipe, "crowdpose", tmp_path) == recipe
    for split in ("trainval", "test"):
        file = tmp_path / "crowdpose" / "annotations" / f"mmpose_crowdpose_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    found = in_layout(recipe, "crowdpose", tmp_path).sources
    assert [source.images for source in found] == ["crowdpose/images"] * 2
    assert found[1].annotations == "crowdpose/annotations/mmpose_crowdpose_test.json"
    given = options(data_root=tmp_path)
    assert Path(boxes_of(given)).parent == tmp_path / "person_detection_results"
    boxes = tmp_path / "crowdpose" / "annotations" / BOXES["crowdpose"]
    boxes.write_text("[]")
    assert boxes_of(given) == str(boxes)
    assert boxes_of(dataclasses.replace(given, boxes="gt")) == "gt"


def test_all_missing_files_are_named_before_anything_runs(tmp_path: Path) -> None:
    given = options(data_root=tmp_path)
    plan = make_plan(given, paper_recipe("crowdpose"))
    with pytest.raises(DatasetError) as caught:
        check_files(given, plan)
    text = str(caught.value)
    with pytest.raises(DatasetError, match="nowhere is no folder"):
        check_files(options(data_root=tmp_path / "nowhere"), plan)
    assert text.startswith("3 files are missing")
    for word in ("hrnet_w32-36af842e.pth", "hrnet_w48-8ef0771d.pth", "--from-scratch",
                 "data fetch imagenet-hrnet", "data fetch boxes", BOXES["crowdpose"]):  # fmt: skip
        assert word in text
    (tmp_path / BOXES["crowdpose"]).write_text("[]")
    check_files(dataclasses.replace(given, from_scratch=True), plan)
    for width in (32, 48):
        imagenet_file(given, width).parent.mkdir(exist_ok=True)
        imagenet_file(given, width).write_bytes(b"")
    check_files(given, plan)
    official = dataclasses.replace(given, official=(tmp_path / "w32.pth",))
    with pytest.raises(DatasetError, match=r"1 files are missing: .*w32.pth \(a published"):
        check_files(official, make_plan(official, paper_recipe("coco")))
    with pytest.raises(TrainingError, match="neither w32 nor w48"):
        planned(official=(Path("pose.pth"),))


def test_networks_cost_what_their_tables_say() -> None:
    recipe = paper_recipe("coco")
    student, teacher = network_cost(recipe), network_cost(teacher_recipe(recipe))
    assert (student.params, teacher.params) == (31_289_521, 66_349_153)
    assert student.macs == pytest.approx(7.69e9, rel=2e-3)
    assert teacher.macs == pytest.approx(15.74e9, rel=2e-3)
    found = {c.step: c for c in costs(planned(), Networks.of(paper_recipe("crowdpose")), (1000, 0))}
    w32, w48 = 7.68e9, 15.74e9
    expected = {
        "train teacher": 210 * 3 * w48,
        "train seed1/stage1-labels": 210 * 3 * w32,
        "train seed1/stage1-fea": 210 * (3 * w32 + w48),
        "train seed1/stage2-gt-on-labels": 30 * (w32 + 3 * 0.34e9),
        "train seed1/stage2-teacher-on-labels": 30 * (w32 + 3 * 0.34e9 + w48),
    }
    for name, macs in expected.items():
        assert found[name].flop == pytest.approx(2 * 1000 * macs, rel=5e-3), name


def test_a_dry_run_needs_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "coco", "--dry-run", "--tflops", "100"]) == 0
    text = capsys.readouterr().out
    for word in ("76.2", "75.1 AP on COCO test-dev", "only COCO's server", "nobody has measured",
                 "card of 100 TFLOP/s:", "GPU memory: about", "decoded photos 49 GB",
                 "149813 people to train on", "cfpose-train teacher --recipe"):  # fmt: skip
        assert word in text
    assert main(["reproduce", "crowdpose", "--table", "3", "--dry-run", "--from-scratch"]) == 0
    text = capsys.readouterr().out
    assert "target of ours: AP 68.7, AP50 86.7, AP75 73.5, AP_easy 75.5" in text
    assert "from scratch: random weights" in text
    assert "--init" not in text
    assert "RTX 4090:" in text
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="--table 4 is not of coco; it has 1"):
        main(["reproduce", "coco", "--table", "4", "--dry-run"])
    with pytest.raises(InputError, match="--data-root is missing"):
        main(["reproduce", "coco", "--out", "out"])


def test_the_people_of_annotations_that_are_here_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = boxes_of(options(data_root=tmp_path))
    write_data(tmp_path, "crowdpose", small(paper_recipe("crowdpose")))
    assert boxes_of(options(data_root=tmp_path)) == before  # of the plan that is made before
    check_files(given := options(data_root=tmp_path), planned(data_root=tmp_path))
    assert imagenet_file(given, 48).is_file()
    command = ["reproduce", "crowdpose", "--dry-run", "--data-root", str(tmp_path)]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "16 people to train on, 8 to measure on (counted in the annotations)" in text
    assert before in text


def test_a_miniature_is_taken_for_the_data_set_that_it_stands_for(tmp_path: Path) -> None:
    for dataset, crowded in (("coco", False), ("crowdpose", True)):
        recipe = small(paper_recipe(dataset))  # type: ignore[arg-type]
        write_data(tmp_path, dataset, recipe)  # type: ignore[arg-type]
        for source in recipe.sources:
            assert is_crowdpose(json.loads((tmp_path / source.annotations).read_bytes())) == crowded
