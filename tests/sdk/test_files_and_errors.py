"""Whole files, the error tree, and the message of a missing extra."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import cfpose_sdk
from cfpose_sdk import errors
from cfpose_sdk.files import UnfinishedFile, write_file


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
