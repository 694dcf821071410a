"""The promised surface: names, signatures, spec keys, commands."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cfpose_sdk
from cfpose_sdk import COCO_17, ModelSpec, PoseEstimator, Poses, errors
from cfpose_sdk.spec import FinderSpec

PROMISED_KEYS = {
    "spec_version", "name", "decode", "input", "size_wh", "box_scale", "split_ratio", "keypoints",
    "limbs", "flip_pairs", "oks_sigmas", "precision", "trained_on", "license", "metrics", "gate",
}  # fmt: skip
POSES = {
    "xy", "confidence", "visible", "boxes", "box_scores", "ids", "covariance", "skeleton",
    "image_size_wh", "speed_ms", "plot", "save", "to_dict", "to_json", "to_coco", "to_dataframe",
    "to_supervision", "arrays", "__len__", "__getitem__", "__iter__",
}  # fmt: skip
FLAGS = {
    "cfpose predict": {"--model", "--detector", "--save", "--coco", "--json", "--csv", "--show",
                       "--device"},
    "cfpose doctor": {"--json"},
    "cfpose-train": set(),
    "cfpose-export": set(),
    "cfpose-bench": {"--dataset", "--images", "--model", "--boxes", "--json", "--min-ap"},
}  # fmt: skip


def _section(root: Path, document: str, title: str) -> str:
    text = (root / document).read_text(encoding="utf-8")
    return re.split(r"^#", text.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def _spec() -> ModelSpec:
    return ModelSpec(name="any", skeleton=COCO_17, size_wh=(192, 256))


def test_all_is_sorted_and_resolves() -> None:
    def place(name: str) -> tuple[int, str]:  # constants, then classes, then the rest
        return (0 if name.isupper() else 1 if name[0].isupper() else 2), name

    assert cfpose_sdk.__all__ == sorted(cfpose_sdk.__all__, key=place)
    assert len(set(cfpose_sdk.__all__)) == len(cfpose_sdk.__all__)
    assert all(hasattr(cfpose_sdk, name) for name in cfpose_sdk.__all__)


def test_the_readme_names_what_is_public(root: Path) -> None:
    documented = re.findall(r"`(\w+)`", _section(root, "README.md", "Public names"))
    assert set(documented) - {"cfpose_sdk"} == set(cfpose_sdk.__all__)


def test_every_error_is_public_and_in_the_drawn_tree() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.CfposeError)
    }
    assert defined == {"CfposeError", *re.findall(r"── (\w+)", errors.__doc__ or "")}
    assert defined <= set(cfpose_sdk.__all__)


def test_the_estimator_keeps_its_calls() -> None:
    opened = inspect.signature(PoseEstimator)
    for arguments in ([], ["x.onnx"]):
        opened.bind(*arguments, detector=None, device="auto")
    assert opened.parameters["detector"].default is None
    assert next(iter(opened.parameters.values())).default is None
    for call in (PoseEstimator.predict, PoseEstimator.predict_batch):
        signature = inspect.signature(call)
        signature.bind("self", "photo.jpg", boxes=[])
        assert signature.parameters["boxes"].default is None
    inspect.signature(PoseEstimator.stream).bind("self", "video.mp4")
    assert {"__enter__", "__exit__", "close"} <= set(dir(PoseEstimator))


def test_the_result_keeps_its_fields() -> None:
    fields = {field.name for field in dataclasses.fields(Poses)}
    assert fields | set(dir(Poses)) >= POSES


def test_the_pose_spec_keeps_its_keys(root: Path) -> None:
    keys = set(json.loads(_spec().to_json()))
    assert keys >= PROMISED_KEYS
    assert keys == _documented_keys(_section(root, "CONTRIBUTING.md", "ModelSpec"))


def test_the_finder_spec_keeps_its_keys(root: Path) -> None:
    spec = FinderSpec(name="any", size_wh=(320, 320), threshold=0.3, nms_iou=0.5)
    documented = _documented_keys(_section(root, "CONTRIBUTING.md", "FinderSpec"))
    assert set(json.loads(spec.to_json())) == documented


def _documented_keys(table: str) -> set[str]:
    first_cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    return {key for cell in first_cells for key in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize("command", FLAGS)
def test_the_commands_explain_themselves(command: str) -> None:
    script, *words = command.split()
    line = [str(Path(sys.executable).parent / script), *words, "--help"]
    run = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "usage:" in run.stdout
    assert FLAGS[command] <= set(re.findall(r"--[a-z][a-z-]*", run.stdout))


@pytest.mark.parametrize("command", ["cfpose", "cfpose-train", "cfpose-export", "cfpose-bench"])
def test_wrong_use_exits_with_two(command: str) -> None:
    line = [str(Path(sys.executable).parent / command), "--no-such-flag"]
    run = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    "module", ["cfpose_sdk", "cfpose_bench", "cfpose_training", "cfpose_export"]
)
def test_each_package_says_what_it_is(module: str) -> None:
    assert (importlib.import_module(module).__doc__ or "").strip()
