"""Numbers of a recipe: each has a range, and what lies outside is named before any work."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cfpose_sdk.errors import TrainingError
from cfpose_training.cli import main
from cfpose_training.config import Recipe, load_recipe
from cfpose_training.recipe_checks import RANGES, Range


def kinds_of(annotation: Any) -> Iterator[type]:
    """The types that an annotation is made of."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        yield annotation
    for part in typing.get_args(annotation):
        yield from kinds_of(part)


def recipe_classes(start: type = Recipe) -> Iterator[type]:
    yield start
    for annotation in typing.get_type_hints(start).values():
        for kind in kinds_of(annotation):
            if dataclasses.is_dataclass(kind):
                yield from recipe_classes(kind)


def test_every_number_of_a_recipe_has_a_range() -> None:
    numbers: dict[str, set[str]] = {}
    for owner in recipe_classes():
        hints = typing.get_type_hints(owner)
        names = {name for name, a in hints.items() if {int, float} & set(kinds_of(a))}
        if names:
            numbers[owner.__name__] = names
    assert {owner: set(fields) for owner, fields in RANGES.items()} == numbers


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr = 3e-3", "lr = -1.0", "stage1.lr is -1.0, expected more than 0"),
        ("lr = 3e-3", "lr = 0", "stage1.lr is 0, expected more than 0"),
        ("lr = 3e-3", "lr = nan", "stage1.lr is nan, expected a number: more than 0"),
        ("lr = 3e-3", "lr = inf", "stage1.lr is inf, expected a number: more than 0"),
        ("lr = 3e-3", "lr = true", "stage1.lr is True|stage1.lr"),
        ("lr = 3e-3", "lr = 3e-3\nweight_decay = -1.0", "weight_decay is -1.0, expected 0 or more"),
        ("lr = 3e-3", "lr = 3e-3\nworkers = true", "stage1.workers is True, expected a number"),
        ("epochs = 2", "epochs = 0", "stage1.epochs is 0, expected 1 or more"),
        ("rotation_p = 0.2", "rotation_p = 7.0", "augment.rotation_p is 7.0, expected 0 to 1"),
        ("ema_decay = 0.9", "ema_decay = 1.0", "ema_decay is 1.0, expected 0 to less than 1"),
        ("repeat = 2", "repeat = 0", r"sources\[0\].repeat is 0, expected 1 or more"),
        ("width = 4", "width = 0", "pose.hrnet.width is 0, expected 1 to 8192"),
        ("size_wh = [36, 48]", "size_wh = [36, -48]", r"pose.size_wh is \(36, -48\)"),
    ],
)
def test_a_number_out_of_its_range_is_named(
    tiny_recipe: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = tiny_recipe.read_text()
    assert old in text
    tiny_recipe.write_text(text.replace(old, new, 1))
    arguments = ["--recipe", str(tiny_recipe), "--data-root", str(tmp_path), "--out"]
    with pytest.raises(TrainingError, match=rf"not usable: .*{message}"):
        main(["stage1", *arguments, str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("stage1", {"lr": -1.0}, "stage1.lr is -1.0, expected more than 0"),
        ("stage1", {"milestones": (0,)}, "stage1.milestones"),
        ("stage1", {"workers": "2"}, "stage1.workers is 2, expected a number"),
        ("stage1", {"mild_epochs": 1}, r"give \[mild_augment\]"),
        ("augment", {"flip_p": math.nan}, "augment.flip_p is nan"),
        ("pose", {"hrnet": None}, "has one backbone"),
    ],
)
def test_a_recipe_of_python_has_the_same_ranges(
    tiny_recipe: Path, field: str, change: dict[str, Any], message: str
) -> None:
    recipe = load_recipe(tiny_recipe)
    part = dataclasses.replace(getattr(recipe, field), **change)
    with pytest.raises(TrainingError, match=message):
        dataclasses.replace(recipe, **{field: part})


@pytest.mark.parametrize(
    "words",
    [
        ["label", "--views", "7"],
        ["label", "--box-score", "nan"],
        ["label", "--min-side", "-1"],
        ["label", "--limit", "-1"],
        ["label", "--max-minutes", "0"],
        ["label", "--box-margin", "nan"],
        ["label", "--min-joints", "0"],
        ["data", "speed", "--batches", "0"],
        ["finish", "--init-share", "2"],
    ],
)
def test_numbers_of_commands_have_ranges(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert f"argument {words[-2]}: got {words[-1]!r}, expected a " in capsys.readouterr().err


def test_a_recipe_of_windows_is_read(tiny_recipe: Path) -> None:
    plain = load_recipe(tiny_recipe)
    text = tiny_recipe.read_text().replace("\n", "\r\n")
    tiny_recipe.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_recipe(tiny_recipe) == plain
    tiny_recipe.write_bytes("name = 'ä'".encode("latin-1"))
    with pytest.raises(TrainingError, match="not usable"):
        load_recipe(tiny_recipe)


def test_ranges_say_their_ends() -> None:
    assert [str(r) for r in (Range(0), Range(0, open_low=True), Range(0, 2, open_low=True))] == [
        "0 or more", "more than 0", "more than 0 to 2",
    ]  # fmt: skip
    assert not Range(0).holds(math.nan)
