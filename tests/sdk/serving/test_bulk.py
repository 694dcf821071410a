"""`cfpose bulk`: every photo once, broken ones counted, and going on where it was stopped."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk import InputError, MissingDependencyError, PoseEstimator
from cfpose_sdk.cli.main import main
from cfpose_sdk.detectors.base import PersonFinder
from cfpose_sdk.errors import BoxError
from cfpose_sdk.serving import bulk
from cfpose_sdk.serving.bulk import BulkOptions, photos_of, run_bulk
from cfpose_sdk.serving.shards import Counts, ShardFolder

PHOTOS, BROKEN = 60, {3, 17, 40, 59}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 small photos, 4 of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    chance = np.random.default_rng(0)
    for n in range(PHOTOS):
        data = cv2.imencode(".png", chance.integers(0, 256, (64, 64, 3), dtype=np.uint8))[1]
        whole = data.tobytes()
        (folder / f"{n:03d}.png").write_bytes(whole[:900] if n in BROKEN else whole)
    return folder


@pytest.fixture
def options(pose_model: Path, finder_model: Path) -> BulkOptions:
    return BulkOptions(
        model=str(pose_model), detector=str(finder_model), device="cpu", workers=1, shard_size=25
    )


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The shards are made here, one after the other; their numbers."""
    made: list[int] = []

    def here(todo: list[tuple[int, list[str]]], options: BulkOptions) -> Any:
        poser = bulk.Poser(options, 1)
        for number, names in todo:
            made.append(number)
            yield number, poser.rows(names)

    monkeypatch.setattr(bulk, "_on_processes", here)
    return made


def _rows(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("part-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def _check(rows: list[dict[str, Any]], photos: Path) -> None:
    assert [row["image"] for row in rows] == sorted(map(str, photos.iterdir()))
    assert {int(Path(row["image"]).stem) for row in rows if row["error"]} == BROKEN
    assert all(len(row["people"]) == 2 for row in rows if not row["error"])


def test_killed_half_way_and_gone_on(
    photos: Path, pose_model: Path, finder_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [str(Path(sys.executable).parent / "cfpose"), "bulk", str(photos), "--out", str(out)]
    command += ["--model", str(pose_model), "--detector", str(finder_model)]
    command += ["--device", "cpu", "--workers", "2", "--shard-size", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as first:
        until = time.monotonic() + 60
        while len(list(out.glob("part-*"))) < 3 and time.monotonic() < until:
            time.sleep(0.002)
        first.send_signal(signal.SIGKILL)
    done = {file: file.stat().st_mtime_ns for file in out.glob("part-*")}
    assert 3 <= len(done) < 30
    assert not (out / "summary.json").exists()
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 1, run.stderr  # some photos are broken
    assert run.stdout == f"60 photos, 112 people, 4 broken: {out}\n"
    assert {file: file.stat().st_mtime_ns for file in done} == done
    _check(_rows(out), photos)
    summary = json.loads((out / "summary.json").read_text())
    assert summary == {"images": 60, "people": 112, "broken": 4, "shards": 30}


def test_rows_are_what_predict_says(
    photos: Path, options: BulkOptions, in_this_process: list[int], tmp_path: Path
) -> None:
    counts = run_bulk(photos_of([str(photos)]), ShardFolder(tmp_path / "out"), options)
    assert counts == Counts(60, 112, 4)
    assert in_this_process == [0, 1, 2]
    rows = _rows(tmp_path / "out")
    _check(rows, photos)
    assert "truncated PNG" in rows[3]["error"]
    with PoseEstimator(options.model, detector=options.detector, device="cpu") as estimator:
        expected = estimator.predict(rows[0]["image"]).to_dict()["people"]
    for person in expected:
        del person["visible"]
    assert rows[0] == {
        "image": str(photos / "000.png"), "size_wh": [64, 64], "people": expected, "error": None
    }  # fmt: skip


def test_a_photo_that_the_detector_fails_on_is_broken_and_no_other(
    photos: Path, options: BulkOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = photos_of([str(photos)])[:12]  # the fourth is broken
    find, calls = PersonFinder.__call__, list[int]()

    def fail_once(finder: PersonFinder, image: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:  # the seventh photo
            raise BoxError("box 0 must be finite")
        return find(finder, image)

    monkeypatch.setattr(PersonFinder, "__call__", fail_once)
    rows = bulk.Poser(options, 1).rows(names)
    assert [row["image"] for row in rows] == names
    assert [n for n, row in enumerate(rows) if row["error"]] == [3, 6]
    assert rows[6]["error"] == "box 0 must be finite"


@pytest.mark.parametrize(("shards", "workers"), [([100, 100, 40], 2), ([5], 8), ([1] * 9, 1)])
def test_pieces_hold_every_photo_once_and_grow_small(shards: list[int], workers: int) -> None:
    todo = [(n, [f"{n}-{k}" for k in range(size)]) for n, size in enumerate(shards)]
    pieces = list(bulk._pieces(todo, workers))
    for number, photos in todo:
        mine = [(first, names) for n, first, names in pieces if n == number]
        assert [name for _, names in mine for name in names] == photos
        assert [photos[first] for first, _ in mine] == [names[0] for _, names in mine]
    sizes = [len(names) for _, _, names in pieces]
    assert max(sizes) <= 32
    assert sizes[-1] <= 4  # what the others wait for when one worker has the last piece


def test_pieces_that_overtake_each_other_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    todo = [(7, [f"a{n}" for n in range(40)]), (8, ["b0"])]
    first = threading.Event()

    def work(photos: list[str]) -> list[dict[str, Any]]:
        if photos[0] == "a0":
            assert first.wait(60)  # until the last shard is done
        elif photos[0] == "b0":
            first.set()
        return [{"image": photo} for photo in photos]

    monkeypatch.setattr(bulk, "_work", work)
    with ThreadPoolExecutor(2) as pool:
        done = dict(bulk._finished(pool, todo, 2))  # type: ignore[arg-type]
    assert list(done) == [8, 7]
    assert [row["image"] for row in done[7]] == todo[0][1]


def test_a_finished_run_is_not_made_again(
    photos: Path, options: BulkOptions, in_this_process: list[int], tmp_path: Path
) -> None:
    shards, names = ShardFolder(tmp_path / "out"), photos_of([str(photos)])
    first = run_bulk(names, shards, options)
    shards.file(1).unlink()
    told: list[Counts] = []
    assert run_bulk(names, shards, options, on_shard=told.append) == first
    assert in_this_process == [0, 1, 2, 1]
    assert sum(counts.images for counts in told) == 60


@pytest.mark.parametrize("changed", ["images", "shard_size", "max_people", "covariance"])
def test_another_run_is_refused(
    photos: Path, options: BulkOptions, in_this_process: list[int], tmp_path: Path, changed: str
) -> None:
    import dataclasses

    shards, names = ShardFolder(tmp_path / "out"), photos_of([str(photos)])
    run_bulk(names, shards, options)
    other = {"shard_size": 7, "max_people": 1, "covariance": True}
    if changed in other:
        options = dataclasses.replace(options, **{changed: other[changed]})
    with pytest.raises(InputError, match=f"differs in .*{changed}"):
        run_bulk(names[1:] if changed == "images" else names, shards, options)


def test_a_damaged_shard_is_named(
    photos: Path, options: BulkOptions, in_this_process: list[int], tmp_path: Path
) -> None:
    shards, names = ShardFolder(tmp_path / "out"), photos_of([str(photos)])
    run_bulk(names, shards, options)
    shards.file(2).write_text('{"image": "cut o')
    with pytest.raises(InputError, match=r"part-00002\.jsonl is damaged .*remove it"):
        run_bulk(names, shards, options)


def test_a_folder_of_somebody_else_is_refused(
    photos: Path, options: BulkOptions, tmp_path: Path
) -> None:
    (tmp_path / "part-00000.jsonl").touch()
    with pytest.raises(InputError, match="choose another --out"):
        run_bulk(photos_of([str(photos)]), ShardFolder(tmp_path), options)
    (tmp_path / "plan.json").write_text("[1]")
    with pytest.raises(InputError, match="no plan of cfpose bulk"):
        run_bulk(photos_of([str(photos)]), ShardFolder(tmp_path), options)


def test_parquet_holds_the_same(
    photos: Path, options: BulkOptions, in_this_process: list[int], tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet is not installed")
    names = photos_of([str(photos)])
    lines, table = ShardFolder(tmp_path / "a"), ShardFolder(tmp_path / "b", "parquet")
    run_bulk(names, lines, options)
    assert run_bulk(names, table, options) == Counts(60, 112, 4)
    assert run_bulk(names, table, options) == Counts(60, 112, 4)  # read back from the files
    rows = parquet.read_table(table.file(0)).to_pylist()
    expected = _rows(tmp_path / "a")[:25]
    assert [row["image"] for row in rows] == [row["image"] for row in expected]
    assert [row["error"] for row in rows] == [row["error"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for person, same in zip(row["people"] or [], other["people"] or [], strict=True):
            np.testing.assert_array_equal(np.float32(person["xy"]), np.float32(same["xy"]))
            assert person["covariance"] is None


def test_parquet_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfpose_sdk.errors.is_installed", lambda module: False)
    with pytest.raises(MissingDependencyError, match=r"cfpose-sdk\[parquet\]"):
        ShardFolder(tmp_path, "parquet")


def test_sources_and_lists(
    photos: Path,
    in_this_process: list[int],
    tiny_defaults: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{photos}/001.png\n\n{photos}/002.png\n{photos}/nowhere.png\n")
    command = ["bulk", f"{photos}/00[01].png", "--list", str(listed), "--out", str(tmp_path / "o")]
    assert main(command) == 1
    assert capsys.readouterr().out.startswith("4 photos, 6 people, 1 broken: ")
    assert [Path(row["image"]).name for row in _rows(tmp_path / "o")] == [
        "000.png", "001.png", "002.png", "nowhere.png"
    ]  # fmt: skip
    none = ["bulk", str(photos / "003.png"), "--out", str(tmp_path / "none")]
    assert main(none) == 2


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no photo"):
        main(["bulk", "--out", str(tmp_path / "o")])
    with pytest.raises(InputError, match="use: cfpose predict"):
        photos_of([str(tmp_path / "clip.mp4")])
    with pytest.raises(InputError, match="shard_size must be 1 or more"):
        BulkOptions(shard_size=0)
    assert not (tmp_path / "o").exists()


def test_on_ray(photos: Path, options: BulkOptions, tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        with pytest.raises(MissingDependencyError, match=r"cfpose-sdk\[ray\]"):
            run_bulk(photos_of([str(photos)]), ShardFolder(tmp_path), options, ray="local")
        pytest.skip("ray is not installed: pip install 'cfpose-sdk[ray,cpu]'")
    command = [str(Path(sys.executable).parent / "cfpose"), "bulk", str(photos), "--ray", "local"]
    command += ["--out", str(tmp_path / "out"), "--model", str(options.model)]
    command += ["--detector", str(options.detector), "--shard-size", "10", "--workers", "1"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 1, run.stderr
    _check(_rows(tmp_path / "out"), photos)
