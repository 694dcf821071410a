"""Teacher and ablation of EfficientNet networks from ImageNet weights, through the command line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.spec import SPEC_KEY, ModelSpec
from cfpose_training import cli
from cfpose_training.checkpoints.files import load_tensors
from cfpose_training.nets.efficientnet import EfficientNetLite, LiteName
from tests.training.nets.test_efficientnet import published_state

HRNET = "hrnet = { width = 4, stem = 4, bottlenecks = 1, modules = [1, 1, 1], blocks = 1 }"
NETWORKS = """
[teacher]
name = "larger"
lite = { body = "lite2", neck = [12, 8, 8], frozen = 4 }
"""


def frozen_blocks(checkpoint: Path, blocks: int) -> tuple[dict[str, Tensor], ModelSpec]:
    """The weights of a network's stem and first blocks, by the body's own names."""
    tensors, metadata = load_tensors(checkpoint)
    still = ("conv_stem.", *(f"blocks.{index}." for index in range(blocks)))
    body = {key.removeprefix("backbone.body."): value for key, value in tensors.items()}
    kept = {key: value for key, value in body.items() if key.startswith(still) and "conv" in key}
    return kept, ModelSpec.from_json(metadata[SPEC_KEY])


def started(name: LiteName, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file of ImageNet weights, and what a body has after taking them."""
    path, state = folder / f"{name}.pth", published_state(name)
    torch.save(state, path)
    body = EfficientNetLite(name)
    body.load_imagenet(state)
    return path, body.state_dict()


@pytest.fixture
def lite_recipe(tiny_recipe: Path) -> Path:
    text = tiny_recipe.read_text().replace(HRNET, "lite = { neck = [12, 8, 4], frozen = 3 }")
    assert "lite" in text
    tiny_recipe.write_text(text + NETWORKS)
    return tiny_recipe


def test_teacher_and_arms_start_from_their_weights(
    lite_recipe: Path, tiny_root: Path, tmp_path: Path
) -> None:
    lite2, lite2_body = started("lite2", tmp_path)
    lite0, lite0_body = started("lite0", tmp_path)
    common = ["--recipe", str(lite_recipe), "--data-root", str(tiny_root), "--threads", "1"]
    run = tmp_path / "teacher"
    assert cli.main(["teacher", *common, "--out", str(run), "--init", str(lite2)]) == 0
    teacher = run / "teacher.safetensors"
    kept, spec = frozen_blocks(teacher, 4)
    assert spec.name == "larger"
    assert len(kept) == 12  # the stem, two convolutions of the first block, three of the others
    for key, value in kept.items():
        torch.testing.assert_close(value, lite2_body[key], rtol=0, atol=0)

    out = tmp_path / "ablation"
    arms = ["--schemes", "baseline,2", "--seeds", "1", "--teacher", str(teacher)]
    assert cli.main(["ablation", *common, "--out", str(out), "--init", str(lite0), *arms]) == 0
    students = [
        out / "seed1" / f"stage1-{label}" / "student.safetensors" for label in ("labels", "fea")
    ]
    for student in students:
        kept, _ = frozen_blocks(student, 3)
        assert len(kept) == 9
        for key, value in kept.items():
            torch.testing.assert_close(value, lite0_body[key], rtol=0, atol=0)
    plain, taught = (load_tensors(student)[0]["backbone.smooth4.0.weight"] for student in students)
    assert not torch.equal(plain, taught)
    with open(out / "ablation.csv", newline="") as file:
        assert [row["scheme"] for row in csv.DictReader(file)] == ["baseline", "2"]


def test_frozen_blocks_without_weights_are_refused_by_the_name_of_the_body(
    lite_recipe: Path, tiny_root: Path, tmp_path: Path
) -> None:
    common = ["--recipe", str(lite_recipe), "--data-root", str(tiny_root)]
    common += ["--accelerator", "cpu", "--out", str(tmp_path / "out")]
    for command, name in (
        ("stage1", "tiny keeps its first 3.*Lite0"),
        ("teacher", "larger.*Lite2"),
    ):
        with pytest.raises(TrainingError, match=name):
            cli.main([command, *common])


def test_a_dry_run_names_what_a_run_starts_from(
    lite_recipe: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--recipe", str(lite_recipe), "--data-root", str(tiny_root)]
    common += ["--out", str(tmp_path / "out"), "--dry-run", "--init"]
    for command in (["stage1"], ["teacher"], ["ablation", "--teacher", str(lite_recipe)]):
        assert cli.main([*command, *common, str(lite_recipe)]) == 0
        assert f"  init: {lite_recipe}\n" in capsys.readouterr().out
        assert cli.main([*command, *common, "none.pth"]) == 0
        assert "  init: none.pth (missing)\n" in capsys.readouterr().out
