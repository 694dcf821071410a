"""Outputs of cfpose-train are checked before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfpose_sdk.errors import InputError
from cfpose_training.cli import main


@pytest.mark.parametrize("option", ["--out", "--cache"])
def test_a_file_is_no_folder_of_a_run(tiny_recipe: Path, tmp_path: Path, option: str) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    arguments = ["stage1", "--recipe", str(tiny_recipe), "--data-root", str(tmp_path)]
    with pytest.raises(
        InputError,
        match=f"{option} .*below cannot be written: .*file is no folder; give another {option}",
    ):
        main([*arguments, "--out", str(tmp_path / "run"), option, str(file / "below")])
    assert not (tmp_path / "run").exists()
    assert file.read_text() == "kept"


@pytest.mark.parametrize("minutes", ["nan", "-1", "0", "soon"])
def test_minutes_are_above_zero(
    tiny_recipe: Path, tmp_path: Path, minutes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--data-root", str(tmp_path), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="2"):
        main(["stage1", "--recipe", str(tiny_recipe), *place, "--max-minutes", minutes])
    assert "expected a number of minutes above 0" in capsys.readouterr().err


def test_files_that_are_read_are_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    file.write_text("kept")
    with pytest.raises(InputError, match=r"--output .* is one of the sources"):
        main(["convert", str(file), "-o", str(file)])
    label = ["label", "--data-root", str(tmp_path), "--images", ".", "--labeller", str(file)]
    with pytest.raises(InputError, match=r"--out .* is one of the sources"):
        main([*label, "--out", str(file)])
    with pytest.raises(InputError, match=r"--out .* is a folder"):
        main([*label, "--out", str(tmp_path)])
    assert file.read_text() == "kept"
