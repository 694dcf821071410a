"""Decoded photos: one builder of several processes, where they lie, and reading without them."""

from __future__ import annotations

import csv
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from cfpose_sdk.errors import DatasetError, ImageError
from cfpose_training.cli import main
from cfpose_training.data import photo_cache
from cfpose_training.data.photo_cache import cache_photos, photo_folder

BUILD = """
import sys, time
from pathlib import Path
from cfpose_training.data import photo_cache
read = photo_cache.read_image
def slow(path):
    time.sleep(float(sys.argv[3]))
    return read(path)
photo_cache.read_image = slow
photos = sorted(Path(sys.argv[1]).iterdir())
cache = photo_cache.cache_photos(photos, Path(sys.argv[2]))
print(len(cache), int(cache[11].sum()))
"""


def builder(photos: Path, folder: Path, wait_s: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", BUILD, str(photos), str(folder), str(wait_s)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_three_processes_decode_once(tiny_root: Path, tmp_path: Path) -> None:
    started = [builder(tiny_root / "images", tmp_path / "cache", 0.1) for _ in range(3)]
    ended = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ended
    said = [stderr for _, stderr in ended]
    assert sum("decoding 12 photos once: 0.4 MB into" in text for text in said) == 1
    assert len({stdout for stdout, _ in ended}) == 1
    kinds = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert [kind for kind in kinds if kind != ".lock"] == [".bin", ".json"]


def test_a_dead_builders_lock_is_taken_over(tiny_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    dying = builder(tiny_root / "images", folder, 5.0)
    assert dying.stderr is not None
    assert "decoding" in dying.stderr.readline()
    waiting = builder(tiny_root / "images", folder, 0.0)
    assert waiting.stderr is not None
    assert "another process decodes these photos" in waiting.stderr.readline()
    os.kill(dying.pid, signal.SIGKILL)
    dying.communicate(timeout=600)
    stdout, stderr = waiting.communicate(timeout=600)
    assert waiting.returncode == 0, stderr
    assert stdout.startswith("12 ")
    assert not list(folder.glob("*.part"))


def test_a_disk_that_is_too_small_is_said_before_anything_is_decoded(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("U", "free")(1000))
    with pytest.raises(DatasetError, match=r"take 0.4 MB.*0.0 MB left.*--cache none"):
        cache_photos(sorted((tiny_root / "images").iterdir()), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.bin"))


def test_without_a_cache_photos_are_read_from_their_files(tiny_root: Path) -> None:
    photos = sorted((tiny_root / "images").iterdir())
    kept = cache_photos(photos, tiny_root.parent / "cache")
    read = pickle.loads(pickle.dumps(cache_photos(photos, None)))
    assert len(read) == len(kept) == 12
    assert read.sizes_wh == kept.sizes_wh == [(120, 100)] * 12
    assert all(np.array_equal(read[index], kept[index]) for index in range(12))
    photos[3].write_bytes(photos[3].read_bytes()[:60])
    with pytest.raises(ImageError):
        cache_photos(photos, None)[3]


def test_a_data_root_has_one_folder_outside_itself(
    tiny_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CFPOSE_CACHE", str(tmp_path / "kept"))
    folder = photo_folder(tiny_root)
    assert folder.parent == tmp_path / "kept" / "photos"
    (tmp_path / "link").symlink_to(tiny_root)
    monkeypatch.chdir(tmp_path)
    assert photo_folder(Path("link")) == photo_folder(Path("data")) == folder
    assert photo_folder(tmp_path) != folder


def _learned(log: Path) -> list[list[str]]:
    """A log's columns that the photos decide: all but those of time and memory."""
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [[row[name] for name in ("step", "loss", "kl", "grad_norm", "dev_AP")] for row in rows]


def test_a_run_keeps_photos_in_the_shared_folder_or_nowhere(
    tiny_root: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CFPOSE_CACHE", str(tmp_path / "kept"))
    before = sorted(tiny_root.rglob("*"))
    run = ["stage1", "--recipe", str(tiny_recipe), "--data-root", str(tiny_root)]
    run += ["--accelerator", "cpu", "--threads", "1"]
    assert main([*run, "--out", str(tmp_path / "a"), "--cache", "none"]) == 0
    assert not (tmp_path / "kept").exists()
    assert main([*run, "--out", str(tmp_path / "b")]) == 0
    assert len(list((tmp_path / "kept" / "photos").glob("data-*/photos-*.bin"))) == 2
    assert sorted(tiny_root.rglob("*")) == before
    one, two = (_learned(tmp_path / name / "log.csv") for name in "ab")
    assert one == two
    monkeypatch.setattr(photo_cache, "cache_folder", lambda: tmp_path / "data" / "people.json")
    with pytest.raises(DatasetError, match="--cache none"):
        main([*run, "--out", str(tmp_path / "c")])
