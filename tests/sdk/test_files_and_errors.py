"""Whole files, the error tree, and the message of a missing extra."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import cfpose_sdk
from cfpose_sdk import errors
from cfpose_sdk.files import (
    UnfinishedFile,
    check_output_folder,
    check_outputs,
    shown,
    what_is_at,
    write_file,
)


def test_writes_text_and_bytes_and_makes_folders(tmp_path: Path) -> None:
    assert write_file(tmp_path / "a" / "ö.txt", "ö").read_bytes() == "ö".encode()
    assert write_file(tmp_path / "a" / "ö.txt", b"new").read_bytes() == b"new"
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_file(tmp_path / "x", "old")

    def replace(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(errors.InputError, match="disk full"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_utf8_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="cannot be written"):
        write_file(tmp_path / "x", "\udce9")
    for name in ("zero\0", "x"):
        with (
            pytest.raises(errors.InputError, match="cannot be written"),
            UnfinishedFile(tmp_path / name) as file,
        ):
            file.write("\udce9")
    assert list(tmp_path.iterdir()) == []


def test_what_is_at_a_path_is_answered_or_our_error(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "gone").symlink_to("nowhere")
    asked = {"f": "file", "": "folder", "x": "nothing", "f/x": "nothing", "gone": "nothing"}
    assert {name: what_is_at(tmp_path / name) for name in asked} == asked
    assert what_is_at(os.devnull) == "device"
    for bad in ("n" * 300, "a", "a/x", "zero\0", "x/" * 5000):
        with pytest.raises(errors.InputError, match="cannot be looked at") as caught:
            what_is_at(tmp_path / bad)
        assert len(str(caught.value)) < 400
    with pytest.raises(errors.InputError, match="empty path"):
        what_is_at("")
    assert shown("\udce9") == "\ufffd"


def test_outputs_are_checked_before_work_begins(tmp_path: Path) -> None:
    source = tmp_path / "a.jpg"
    source.touch()
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "loop").symlink_to("loop")
    good = {"--json": tmp_path / "new" / "o.json", "--csv": tmp_path / "o.csv"}
    check_outputs(good, [source, tmp_path / "loop", tmp_path / "missing"])
    check_outputs({"--json": Path(os.devnull), "--csv": Path(os.devnull)}, [source])
    assert list(tmp_path.glob("new")) == []
    for name, cause in (
        ("a.jpg", "one of the sources"), ("link", "one of the sources"),
        (".", "is a folder"), ("a.jpg/o.json", "no folder"), ("loop/o", "cannot be looked at"),
        ("n" * 256, "cannot be looked at"), ("new/../o.csv", "is the file of --csv"),
    ):  # fmt: skip
        with pytest.raises(errors.InputError, match=cause):
            check_outputs({"--csv": tmp_path / "o.csv", "--json": tmp_path / name}, [source])
    with pytest.raises(errors.InputError, match=r"--save .*no folder"):
        check_output_folder("--save", source / "x")


def test_links_are_followed_and_devices_written_through(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target, link = tmp_path / "there" / "f", tmp_path / "link"
    link.symlink_to(target)
    write_file(link, "one")
    write_file(link, "two")
    assert link.is_symlink()
    assert target.read_text() == "two"
    assert list(target.parent.iterdir()) == [target]
    write_file(os.devnull, "x")
    assert what_is_at(os.devnull) == "device"
    with UnfinishedFile("/dev/stdout") as file:
        file.write("a")
        file.part.write_text("b")
    with pytest.raises(RuntimeError), UnfinishedFile(tmp_path / "long" / ("x." + "y" * 250)):
        raise RuntimeError
    assert list((tmp_path / "long").iterdir()) == []
    assert capfd.readouterr().out == "ab"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_file(fifo, b"through")
    assert os.read(reader, 99) == b"through"
    os.close(reader)
    with pytest.raises(errors.InputError, match="is a folder"):
        write_file(tmp_path, "x")


def test_every_error_is_in_the_tree_and_public() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) > 9
    for kind in kinds:
        assert issubclass(kind, errors.CfposeError)
        assert getattr(cfpose_sdk, kind.__name__) is kind


def test_require(monkeypatch: pytest.MonkeyPatch) -> None:
    errors.require("json", "numpy", extra="train", why="this")
    with pytest.raises(errors.MissingDependencyError) as caught:
        errors.require("json", "no_such_module", extra="train", why="training")
    assert str(caught.value) == (
        "training needs no_such_module, which is not installed; "
        "run: pip install 'cfpose-sdk[train]'"
    )
    with pytest.raises(errors.MissingDependencyError):
        errors.require("no_such_parent.child", extra="train", why="training")
    monkeypatch.setitem(sys.modules, "json", None)  # an import that was blocked
    with pytest.raises(errors.MissingDependencyError):
        errors.require("json", extra="train", why="training")
