"""Outputs of cfpose-export are checked before a graph is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfpose_export.cli import main
from cfpose_sdk.errors import InputError


@pytest.mark.parametrize(
    "command",
    [
        ["onnx", "--checkpoint", "net"],
        ["frame", "net"],
        ["openvino", "net"],
        ["engine", "net"],
        ["engine", "--model", "net"],
        ["adopt", "net", "--license", "MIT"],
        ["adopt", "x.onnx", "--license", "MIT", "--calibrate", "net"],
    ],
)
def test_outputs_are_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").write_text("kept")
    (tmp_path / "folder").mkdir()
    for output, message in (
        ("net", "--output net is one of the sources"),
        ("folder", "--output folder is a folder"),
        ("net/x.onnx", "--output net/x.onnx cannot be written: .*net is no folder"),
    ):
        with pytest.raises(InputError, match=message):
            main([*command, "-o", output])
    assert (tmp_path / "net").read_text() == "kept"


def test_the_folder_of_a_bundle_is_checked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"--folder .*file cannot be written"):
        main(["bundle", "--pose", "x.onnx", "--folder", str(tmp_path / "file")])
