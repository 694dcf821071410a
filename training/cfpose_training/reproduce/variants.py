"""The paper's recipes, and their variants as files: a seed, a scheme of Table IV, a data layout."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.files import write_file
from cfpose_training.config import Recipe, Source, load_recipe
from cfpose_training.data.check import KNOWN
from cfpose_training.reproduce.targets import DatasetName

SPLITS: dict[DatasetName, tuple[str, str]] = {  # to train on, to measure on; as `KNOWN` names them
    "coco": ("COCO train2017", "COCO val2017"),
    "crowdpose": ("CrowdPose trainval", "CrowdPose test"),
}


def paper_recipe(dataset: DatasetName) -> Recipe:
    """The recipe of a checkout's `training/recipes`, else the wheel's copy."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "recipes", package / "recipes"):
        if (file := folder / f"paper-{dataset}.toml").is_file():
            return load_recipe(file)
    raise TrainingError(
        f"the recipe paper-{dataset}.toml is neither in a checkout nor in the package; install "
        f"cfpose again"
    )


def in_layout(recipe: Recipe, dataset: DatasetName, root: Path) -> Recipe:
    """The recipe with the places below `root` where its data set is; where none is, as it stands.

    Either source is looked for at all places that `cfpose-train data check` knows.
    """
    sources = []
    for source, name in zip(recipe.sources, SPLITS[dataset], strict=True):
        (known,) = (known for known in KNOWN if known.name == name)
        there = [place for place in known.places if os.path.isfile(root / place[0])]
        with_photos = [place for place in there if os.path.isdir(root / place[1])]
        if there:
            annotations, images = (with_photos or there)[0]
            source = dataclasses.replace(source, annotations=annotations, images=images)
        sources.append(source)
    return dataclasses.replace(recipe, sources=tuple(sources))


def measured_source(recipe: Recipe) -> Source:
    """The source that is measured on and never trained on."""
    return next(source for source in recipe.sources if source.holdout_every == 1)


def write_variant(path: Path, recipe: Recipe) -> None:
    """Write a recipe. Raises TrainingError when another one is there: its runs would not go on."""
    text = recipe_text(recipe)
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise TrainingError(
                f"{path} is another recipe than this plan's: {path.parent.parent} holds a plan "
                f"with other data or of another version; give another --out"
            )
        return
    write_file(path, text)


def recipe_text(recipe: Recipe) -> str:
    """A recipe as TOML: what differs from the defaults; `load_recipe` reads the same one back."""
    values = _own(recipe)
    if recipe.skeleton:
        values.pop("joints", None)
    return "# written by cfpose-train reproduce\n" + "\n".join(_table(values, ())) + "\n"


def _table(values: dict[str, Any], place: tuple[str, ...]) -> list[str]:
    """The lines of a table: its own values first, then the tables in it."""
    lines, below = [], []
    for name, value in values.items():
        if dataclasses.is_dataclass(value):
            below += ["", f"[{'.'.join((*place, name))}]", *_table(_own(value), (*place, name))]
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for each in value:
                title = ".".join((*place, name))
                below += ["", f"[[{title}]]", *_table(_own(each), (*place, name))]
        elif value is not None:
            lines.append(f"{name} = {_value(value)}")
    return lines + below


def _own(record: Any) -> dict[str, Any]:
    """The fields that differ from their defaults, and those without one."""
    found = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.default is not dataclasses.MISSING and value == field.default:
            continue
        if field.default_factory is not dataclasses.MISSING and value == field.default_factory():
            continue
        found[field.name] = value
    return found


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)
