"""A run goes on as itself or not at all: what is compared, what is not, and what is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14
from cfpose_training.config import OptimConfig, Recipe, load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.data.people import load_people
from cfpose_training.pose.run import people_digest, stage1_record, stage2_record
from cfpose_training.pose.train import train_stage1, train_stage2
from cfpose_training.run.loop import RunOptions
from cfpose_training.run.state import (
    LATER_OPTIONS,
    REMOVED_OPTIONS,
    STATE_FILE,
    differences,
    recorded,
    recorded_files,
)

# what a run may have anew: (table, field, value)
FREE = [
    ("pose", "name", "other"),
    ("pose", "deploy_box_scale", 1.1),
    ("stage1", "workers", 3),
    ("stage1", "checkpointing", True),
    ("", "trained_on", ("more",)),
    ("", "license", "other"),
    ("", "finder", None),
]
# and what not, with the name that the message has
BOUND = [
    ("stage1", "lr", 1e-2, "stage1.lr was 0.003, now 0.01"),
    ("stage1", "seed", 3, "stage1.seed was 2025, now 3"),
    ("stage1", "batch_size", 5, "stage1.batch_size was 4, now 5"),
    ("stage1", "precision", "bf16-mixed", "stage1.precision was '32-true', now 'bf16-mixed'"),
    ("distill", "beta", 0.2, "distill.beta was 0.1, now 0.2"),
    ("labels", "sigma_bins", 5.0, "labels.sigma_bins was 4.0, now 5.0"),
    ("augment", "flip_p", 0.0, "augment.flip_p was 0.5, now 0.0"),
    ("pose", "size_wh", (48, 64), r"pose.size_wh was (36, 48), now (48, 64)"),
    ("pose", "decode", "argmax", "pose.decode was 'subbin', now 'argmax'"),
    ("", "joints", CROWDPOSE_14, "skeleton was 'coco', now 'crowdpose'"),
]


def changed(recipe: Recipe, table: str, field: str, value: Any) -> Recipe:
    if not table:
        return dataclasses.replace(recipe, **{field: value})
    part = dataclasses.replace(getattr(recipe, table), **{field: value})
    return dataclasses.replace(recipe, **{table: part})


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


@pytest.mark.parametrize(("table", "field", "value", "line"), BOUND)
def test_what_decides_the_result_is_named(
    recipe: Recipe, table: str, field: str, value: Any, line: str
) -> None:
    other = changed(recipe, table, field, value)
    made, asked = (stage1_record(which, "stage1") for which in (recipe, other))
    assert differences(made, asked) == [line]
    assert differences(stage2_record(recipe), stage2_record(other)) == (
        [] if table in ("stage1", "distill") else [line]
    )


@pytest.mark.parametrize(("table", "field", "value"), FREE)
def test_what_does_not_decide_it_may_change(
    recipe: Recipe, table: str, field: str, value: Any
) -> None:
    other = changed(recipe, table, field, value)
    assert stage1_record(recipe, "stage1") == stage1_record(other, "stage1")
    assert stage2_record(recipe) == stage2_record(other)


def test_every_field_of_a_run_is_recorded_but_the_free_ones(recipe: Recipe) -> None:
    """A field that is added to the options is compared from then on."""
    record = stage1_record(recipe, "stage1")
    free = {"workers", "checkpointing"}
    names = {field.name for field in dataclasses.fields(OptimConfig)} - free
    assert {name.removeprefix("stage1.") for name in record if name.startswith("stage1.")} == names
    assert record["pose.hrnet.width"] == "4"
    assert record["sources[0].repeat"] == "2"
    assert stage2_record(recipe)["stage2.optim.clip_norm"] == "1.0"
    assert differences(stage1_record(recipe, "teacher"), record) == [
        "stage was teacher, now stage1"
    ]


def test_sources_are_compared_one_by_one(recipe: Recipe) -> None:
    more = (*recipe.sources, dataclasses.replace(recipe.sources[0], images="more"))
    lines = differences(recorded(recipe.sources, "sources"), recorded(more, "sources"))
    assert "sources[1].images was not there, now 'more'" in lines
    assert len(lines) == len(dataclasses.fields(recipe.sources[0]))


OF_STAGE2 = {"loss", "oks_window"}


@pytest.mark.parametrize("stage", ["stage1", "teacher", "stage2"])
def test_a_state_from_before_an_option_goes_on_without_it(recipe: Recipe, stage: str) -> None:
    """Every option of LATER_OPTIONS: off it is as it was, on it is another run."""
    now = stage2_record(recipe) if stage == "stage2" else stage1_record(recipe, stage)
    later = [name for name in now if name.rpartition(".")[2] in LATER_OPTIONS]
    expected = set(LATER_OPTIONS) - (set() if stage == "stage2" else OF_STAGE2)
    assert {name.rpartition(".")[2] for name in later} == expected
    before = {name: value for name, value in now.items() if name not in later}
    assert differences(before, now) == []
    for name in later:
        assert differences(before, now | {name: "0.5"}) == [f"{name} was not there, now 0.5"]
    assert len(differences(now, before)) == len(later)  # an older cfpose does not know it


def test_a_state_with_an_option_that_is_gone_goes_on_where_it_was_off(recipe: Recipe) -> None:
    """Another value of it is refused by name, as nothing can act on it any more."""
    now = stage1_record(recipe, "stage1")
    gone = {
        "distill.cst_ratio": "1.0", "distill.logit_temperature": "1.0",
        "distill.alpha_auto_batches": "20", "sources[0].weight": "1.0", "augment.quality_p": "0.0",
        "stage2.integral_head": "False",
    }  # fmt: skip
    assert {name.rpartition(".")[2] for name in gone} == set(REMOVED_OPTIONS)
    assert not {name for name in now if name.rpartition(".")[2] in REMOVED_OPTIONS}
    assert differences(now | gone, now) == []
    for name in gone:
        found = differences(now | gone | {name: "0.5"}, now)
        assert found == [f"{name} was 0.5, now no option any more"]


@pytest.mark.parametrize(
    ("table", "line", "why"),
    [
        ("[stage1]", 'final = "best"', r"final is no option any more: best\.safetensors"),
        ("[augment]", "quality_p = 0.0", "quality_p is no option any more"),
        ("[stage2]", "integral_head = true", r'integral_head is no .*sample_at = "integral"'),
        ("[[sources]]", "weight = 1.0", "weight is no option any more.*joint_weights"),
    ],
)
def test_a_recipe_with_an_option_that_is_gone_is_refused_by_name(
    tiny_recipe: Path, table: str, line: str, why: str
) -> None:
    tiny_recipe.write_text(tiny_recipe.read_text().replace(table, f"{table}\n{line}", 1))
    with pytest.raises(TrainingError, match=why):
        load_recipe(tiny_recipe)


def test_files_are_told_by_their_content(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    for path, text in ((one, "a"), (same, "a"), (other, "b")):
        path.write_text(text)
    assert recorded_files({"teacher": one}) == recorded_files({"teacher": same})
    assert recorded_files({"teacher": one}) != recorded_files({"teacher": other})
    assert recorded_files({"init": None}) == {"init": "none"}
    with pytest.raises(TrainingError, match="cannot read"):
        recorded_files({"teacher": tmp_path / "absent"})


def test_people_are_told_by_what_is_labelled(tiny_root: Path, recipe: Recipe) -> None:
    people = load_people(recipe.sources, tiny_root, COCO_17)
    joints = people.joints.copy()
    joints[3, 5, 0] += 1
    moved = dataclasses.replace(people, joints=joints)
    again = dataclasses.replace(people, photos=tuple(Path(path.name) for path in people.photos))
    assert people_digest(again) == people_digest(people)  # the data root may move
    assert people_digest(moved) != people_digest(people)
    lighter = people.joint_weight.copy()
    lighter[3, 5] = 0.5
    weighed = dataclasses.replace(people, joint_weight=lighter)
    assert people_digest(weighed) != people_digest(people)
    fewer = dataclasses.replace(people, repeat=np.ones_like(people.repeat))
    assert people_digest(fewer) != people_digest(people)


def test_another_run_is_not_resumed(recipe: Recipe, tiny_root: Path, tmp_path: Path) -> None:
    recipe = changed(recipe, "stage2", "gcn", "teacher")
    data = DataOptions(tiny_root, tmp_path / "cache")

    def stopped(name: str) -> RunOptions:
        return RunOptions(tmp_path / name, resume=True, max_minutes=0, accelerator="cpu", threads=1)

    def fresh(name: str, seed: int) -> Path:
        optim = dataclasses.replace(recipe.stage1, epochs=1, batch_size=16, seed=seed)
        path = train_stage1(
            dataclasses.replace(recipe, stage1=optim), data,
            RunOptions(tmp_path / name, accelerator="cpu", threads=1),
        )  # fmt: skip
        assert path is not None
        return path

    one, two = fresh("one", 1), fresh("two", 2)
    assert train_stage1(recipe, data, stopped("s1"), init=one) is None
    state = (tmp_path / "s1" / STATE_FILE).read_bytes()
    for name, init, said in (
        ("another file", two, r"init was a file with SHA-256 \w+, now a file with SHA-256"),
        ("no file", None, r"init was a file with SHA-256 \w+, now none; go on with what"),
    ):
        with pytest.raises(TrainingError, match=said):
            train_stage1(recipe, data, stopped("s1"), init=init)
        assert (tmp_path / "s1" / STATE_FILE).read_bytes() == state, name
    other = changed(changed(recipe, "stage1", "lr", 0.1), "augment", "flip_p", 0.0)
    with pytest.raises(TrainingError, match=r"stage1\.lr was 0\.003, now 0\.1; augment\.flip_p"):
        train_stage1(other, data, stopped("s1"), init=one)
    assert train_stage1(recipe, data, stopped("s1"), init=one) is None  # it still goes on

    assert train_stage2(recipe, one, data, stopped("s2"), teacher=one) is None
    with pytest.raises(TrainingError, match=r"student was a file.*; teacher was a file"):
        train_stage2(recipe, two, data, stopped("s2"), teacher=two)
    with pytest.raises(TrainingError, match=r"stage was stage1, now stage2"):
        train_stage2(recipe, one, data, stopped("s1"), teacher=one)


def test_states_that_say_nothing_are_refused(
    recipe: Recipe, tiny_root: Path, tmp_path: Path
) -> None:
    data = DataOptions(tiny_root, tmp_path / "cache")
    options = RunOptions(tmp_path, resume=True, accelerator="cpu")
    torch.save({"config": "OptimConfig()", "epoch": 1}, tmp_path / STATE_FILE)
    with pytest.raises(TrainingError, match=r"does not say what it was made with.*another --out"):
        train_stage1(recipe, data, options)
    for broken in (b"", b"half a state", (tmp_path / STATE_FILE).read_bytes()[:200]):
        (tmp_path / STATE_FILE).write_bytes(broken)
        with pytest.raises(TrainingError, match="is not the state of a run"):
            train_stage1(recipe, data, options)
