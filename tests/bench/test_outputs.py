"""Outputs of cfpose-bench: refused before a measurement, saved before anything is printed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cfpose_bench import cli
from cfpose_bench.cli import main
from cfpose_sdk.errors import InputError
from tests.bench.known_answer import KnowsTheAnswer

FAST = ["--in-process", "--rounds", "1", "--repeats", "0"]


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement that begins is a failure."""
    monkeypatch.setattr(cli, "measure", lambda *_: pytest.fail("it was measured"))


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--json", "folder"], "--json folder is a folder"),
        (["--html", "folder"], "--html folder is a folder"),
        (["--json", "x", "--csv", "./x"], "--csv x is the file of --json, too"),
        (["--json", "x", "--html", "x"], "--html x is the file of --json, too"),
        (["--csv", "file/x.csv"], "--csv file/x.csv cannot be written: .*file is no folder"),
        (["--json", "file", "--boxes", "gt", "--boxes", "file"], "--json file is one of the"),
        (["--json", "file", "--baseline", "file"], "--json file is one of the sources"),
        (["--baseline", "file"], "file is no report of cfpose-bench"),
    ],
)
def test_outputs_are_refused_before_work(
    dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=message):
        main(["--dataset", str(dataset_folder), *FAST, *options])
    assert (tmp_path / "file").read_text() == "kept"
    assert not (tmp_path / "x").exists()


@pytest.mark.usefixtures("never")
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(dataset_folder: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(InputError, match="no permission"):
        main(["--dataset", str(dataset_folder), *FAST, "--json", str(closed / "r.json")])


@pytest.mark.parametrize("command", [["boxes", "file", "--dataset", "demo"], ["simcc", "file"]])
def test_sub_commands_do_not_overwrite_what_they_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"--output file is one of the sources"):
        main([*command, "-o", "file"])
    assert (tmp_path / "file").read_text() == "kept"


def test_the_report_is_saved_before_the_tables_are_printed(
    dataset_folder: Path, tmp_path: Path, stand_in: type[KnowsTheAnswer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def broken(*_: object) -> str:
        raise UnicodeEncodeError("ascii", "→", 0, 1, "no such letter")

    monkeypatch.setattr(cli, "table", broken)
    report = tmp_path / "r.json"
    with pytest.raises(UnicodeEncodeError):
        main(["--dataset", str(dataset_folder), *FAST, "--json", str(report)])
    assert json.loads(report.read_text())["models"]
