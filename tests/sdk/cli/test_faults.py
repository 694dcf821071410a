"""Killed, out of disk, read-only: no half-written file, no lost input, and the next run ends."""

from __future__ import annotations

import os
import random
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.long import faults
from tests.sdk.cli.conftest import Command


def test_predict_killed_at_six_moments(pose_model: Path, finder_model: Path) -> None:
    models = ["--model", str(pose_model), "--detector", str(finder_model), "--device", "cpu"]
    report = faults.run_points(faults.predicting(models), 6, random.Random(5))
    assert report.wrong == []
    assert sum(report.points.values()) == 6


def test_bench_killed_at_four_moments(pose_model: Path) -> None:
    report = faults.run_points(faults.measuring(str(pose_model)), 4, random.Random(5))
    assert report.wrong == []
    assert sum(report.points.values()) == 4


def test_what_is_half_written_or_lost_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name, text in (("a.json", "[1,"), ("a.csv", "a,b\n1"), ("a.png", "x"), ("a.avi", "RIFF"),
                       ("a.safetensors", "x" * 20), ("a.xml", "<?xml")):  # fmt: skip
        (tmp_path / "out" / name).write_text(text)
    assert len(list(faults._half_written(tmp_path))) == 6


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("option", ["--json", "--csv", "--coco", "--save"])
def test_a_full_disk_leaves_nothing(
    street: Path,
    cfpose: type[Command],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
) -> None:
    output = tmp_path / "out" / ("drawn" if option == "--save" else "file.x")
    before = {path: path.read_bytes() for path in street.iterdir()}
    with full_disk(1500):
        code = cfpose.predict(street, option, output)
    assert code == 2
    assert "cannot be written" in capsys.readouterr().err
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    assert {path: path.read_bytes() for path in street.iterdir()} == before
    assert cfpose.predict(street, option, output) == 0


def test_a_read_only_folder_is_refused_at_once(
    street: Path, cfpose: type[Command], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "fixed"
    place.mkdir()
    mounted = False
    if os.geteuid():
        place.chmod(0o500)
    else:  # root may write wherever a file system lets anybody write
        command = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(place)]
        try:
            mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            mounted = False
        if not mounted:
            pytest.skip("root cannot mount a read-only folder here")
    try:
        for option in ("--json", "--csv", "--coco", "--save", "--openpose"):
            assert cfpose.predict(street, option, place / "x" / "y.json") == 2
            assert "no permission to write into" in capsys.readouterr().err
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)
