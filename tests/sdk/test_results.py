"""Poses: validation, selection, conversions."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk.errors import InputError, MissingDependencyError
from cfpose_sdk.media.image import read_image
from cfpose_sdk.results import VISIBLE_FROM, Poses
from cfpose_sdk.skeleton import COCO_17

RNG = np.random.default_rng(5)
N, K = 3, 17


def make(**changes: Any) -> Poses:
    values: dict[str, Any] = {
        "xy": RNG.uniform(0, 100, (N, K, 2)).astype(np.float32),
        "confidence": RNG.uniform(0, 1, (N, K)).astype(np.float32),
        "boxes": np.array([[10, 20, 40, 80], [0.5, 0.25, 10, 10], [50, 5, 90, 95]], np.float32),
        "box_scores": np.array([0.9, 0.5, 0.25], np.float32),
        "skeleton": COCO_17,
        "image_size_wh": (120, 100),
        "speed_ms": {"total": 1.5},
        "ids": np.array([7, 8, 9]),
        "covariance": RNG.normal(size=(N, K, 2, 2)).astype(np.float32),
        "xy_raw": RNG.uniform(0, 100, (N, K, 2)).astype(np.float32),
        "frame": 4,
        "time_s": 0.4,
        "image": np.full((100, 120, 3), 60, np.uint8),
        "source": "000000000139.jpg",
    }
    return Poses(**{**values, **changes})


POSES = make()
OF_A_PHOTO = dataclasses.replace(POSES, frame=None, time_s=None)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"xy": np.zeros((N, K))}, r"xy must have shape \(N, K, 2\)"),
        ({"xy": np.zeros((N, 14, 2))}, r"xy must have shape \(3, 17, 2\), got \(3, 14, 2\)"),
        ({"confidence": np.zeros((2, K))}, "confidence must have shape"),
        ({"confidence": np.full((N, K), 5.3)}, r"confidence must lie in \[0, 1\]"),
        ({"confidence": np.full((N, K), np.nan)}, "confidence must be finite"),
        ({"xy": np.full((N, K, 2), np.inf)}, "xy must be finite"),
        ({"boxes": np.zeros((N, 5))}, "boxes must have shape"),
        ({"box_scores": np.array([0, -1, 0])}, "box_scores must lie"),
        ({"ids": np.arange(2)}, "ids must have shape"),
        ({"covariance": np.zeros((N, K, 2))}, "covariance must have shape"),
        ({"xy_raw": np.zeros((2, K, 2))}, "xy_raw must have shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(InputError, match=cause):
        make(**changes)


def test_fields_are_float32_and_frozen() -> None:
    poses = make(xy=np.zeros((N, K, 2)), boxes=[[0, 0, 1, 1]] * N)
    assert poses.xy.dtype == poses.boxes.dtype == np.float32
    with pytest.raises(dataclasses.FrozenInstanceError):
        poses.xy = poses.xy  # type: ignore[misc]


@pytest.mark.parametrize(
    ("index", "people"),
    [
        (0, [0]),
        (-1, [2]),
        (np.int64(1), [1]),
        (slice(1, None), [1, 2]),
        (slice(0, 0), []),
        ([2, 0], [2, 0]),
        ([], []),
        (np.array([True, False, True]), [0, 2]),
        (np.array([False] * 3), []),
    ],
)
def test_selection_takes_every_field_along(index: Any, people: list[int]) -> None:
    chosen = POSES[index]
    assert len(chosen) == len(people)
    for name in ("xy", "confidence", "boxes", "box_scores", "ids", "covariance", "xy_raw"):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(POSES, name)[people])
    assert chosen.source == POSES.source
    assert chosen.skeleton is POSES.skeleton


def test_iteration_gives_one_person_at_a_time() -> None:
    people = list(POSES)
    assert [len(person) for person in people] == [1, 1, 1]
    for n, person in enumerate(people):
        np.testing.assert_array_equal(person.xy[0], POSES.xy[n])
    for out in (3, -4):
        with pytest.raises(IndexError):
            POSES[out]
    keypoints, scores = POSES.arrays()
    assert keypoints is POSES.xy
    assert scores is POSES.confidence


def test_visible_is_a_view_on_confidence_and_keeps_coordinates() -> None:
    confidence = np.zeros((N, K), np.float32)
    confidence[0, 3], confidence[1, 4] = VISIBLE_FROM, VISIBLE_FROM - 0.01
    poses = make(confidence=confidence, xy=POSES.xy)
    assert np.argwhere(poses.visible).tolist() == [[0, 3]]
    np.testing.assert_array_equal(poses.xy, POSES.xy)


def test_xyn() -> None:
    np.testing.assert_allclose(POSES.xyn * [120, 100], POSES.xy, rtol=1e-6)


def test_json_holds_the_values() -> None:
    record = json.loads(POSES.to_json())
    assert record == POSES.to_dict()
    assert record["image"] == "000000000139.jpg"
    assert record["size_wh"] == [120, 100]
    assert record["keypoints"] == list(COCO_17.keypoints)
    people = record["people"]
    assert [person["id"] for person in people] == [7, 8, 9]
    np.testing.assert_array_equal(np.float32([p["xy"] for p in people]), POSES.xy)
    np.testing.assert_array_equal(np.float32([p["confidence"] for p in people]), POSES.confidence)
    np.testing.assert_array_equal(np.float32([p["box"] for p in people]), POSES.boxes)
    np.testing.assert_array_equal(np.float32([p["covariance"] for p in people]), POSES.covariance)
    np.testing.assert_array_equal(np.float32([p["xy_raw"] for p in people]), POSES.xy_raw)
    assert (record["frame"], record["time_s"]) == (4, 0.4)
    assert "frame" not in make(frame=None).to_dict()
    assert people[0]["visible"] == POSES.visible[0].tolist()
    assert "id" not in make(ids=None).to_dict()["people"][0]


def test_coco_results() -> None:
    first, second, _ = OF_A_PHOTO.to_coco()
    assert first["image_id"] == 139
    assert first["category_id"] == 1
    assert first["bbox"] == [10, 20, 30, 60]
    assert second["bbox"] == [0.5, 0.25, 9.5, 9.75]
    triples = np.float32(first["keypoints"]).reshape(K, 3)
    np.testing.assert_array_equal(triples[:, :2], POSES.xy[0])
    np.testing.assert_array_equal(triples[:, 2], POSES.confidence[0])
    assert second["score"] == pytest.approx(0.5 * POSES.confidence[1].mean(), rel=1e-6)
    json.dumps(first)


def test_coco_image_ids() -> None:
    assert {r["image_id"] for r in POSES.to_coco(5)} == {5}
    assert make(source="street.jpg", frame=None).to_coco()[0]["image_id"] == "street.jpg"
    assert make(source="clip-000001").to_coco()[0]["image_id"] == "clip-000001"
    for name in ("2024.01-000000", "2024.01-000001"):  # of 2024.01.mp4: no file's name, no suffix
        assert make(source=name, frame=0).to_coco()[0]["image_id"] == name
    with pytest.raises(InputError, match="to_coco"):
        make(source=None).to_coco()


def test_coco_results_load_in_pycocotools(capsys: pytest.CaptureFixture[str]) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    dataset = coco.COCO()
    dataset.dataset = {
        "images": [{"id": 139}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [],
    }
    dataset.createIndex()
    assert len(dataset.loadRes(OF_A_PHOTO.to_coco()).getAnnIds()) == N


def test_nobody() -> None:
    nobody = Poses.empty(COCO_17, (64, 48), source="x.jpg")
    assert len(nobody) == 0
    assert nobody.xy.shape == (0, K, 2)
    assert nobody.visible.shape == (0, K)
    assert list(nobody) == []
    assert nobody.to_coco() == []
    assert nobody.rows() == []
    assert nobody.to_dict()["people"] == []
    assert (nobody.plot(np.zeros((48, 64, 3), np.uint8)) == 0).all()


def test_dataframe() -> None:
    pytest.importorskip("pandas")
    frame = POSES.to_dataframe()
    assert len(frame) == N * K
    wrist = frame[(frame.person == 8) & (frame.keypoint == "left_wrist")].iloc[0]
    assert np.float32(wrist.x) == POSES.xy[1, 9, 0]
    assert np.float32(wrist.y) == POSES.xy[1, 9, 1]
    assert list(POSES[[]].to_dataframe().columns) == list(frame.columns)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match="pip install pandas"):
        POSES.to_dataframe()
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match="pip install supervision"):
        POSES.to_supervision()


def test_supervision_gets_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("supervision")
    stand_in.KeyPoints = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    given = POSES.to_supervision()
    assert given.xy is POSES.xy
    assert given.keypoint_confidence is POSES.confidence
    assert given.detection_confidence is POSES.box_scores
    assert given.data["covariance"] is POSES.covariance
    assert given.data["tracker_id"] is POSES.ids
    assert given.class_id.tolist() == [0, 0, 0]
    assert make(covariance=None, ids=None, xy_raw=None).to_supervision().data == {}


def test_plot_draws_on_a_copy() -> None:
    assert POSES.image is not None
    before = POSES.image.copy()
    picture = POSES.plot()
    np.testing.assert_array_equal(POSES.image, before)
    assert picture.shape == before.shape
    assert (picture != before).any()
    with pytest.raises(InputError, match="carry no image"):
        make(image=None).plot()


def test_save_is_atomic_and_names_its_formats(tmp_path: Path) -> None:
    path = POSES.save(tmp_path / "new" / "ö.png")
    np.testing.assert_array_equal(read_image(path), POSES.plot())
    assert [file.name for file in path.parent.iterdir()] == ["ö.png"]  # no temporary file left
    for bad in ("picture.docx", "picture"):
        with pytest.raises(InputError, match=r"\.jpg or \.png"):
            POSES.save(tmp_path / bad)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        POSES.save(tmp_path / "file" / "x.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "new"]


def test_poses_survive_pickling() -> None:
    again = pickle.loads(pickle.dumps(POSES))
    for field in dataclasses.fields(Poses):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(POSES, field.name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        again.xy = POSES.xy


def test_the_real_supervision_draws_them() -> None:
    supervision = pytest.importorskip("supervision")
    covariance = np.tile(np.diag([9.0, 25.0]).astype(np.float32), (N, K, 1, 1))
    poses = make(covariance=covariance)
    points = poses.to_supervision()
    assert len(points) == N
    np.testing.assert_array_equal(points.xy, poses.xy)
    np.testing.assert_array_equal(points.data["covariance"], covariance)
    np.testing.assert_array_equal(points.data["tracker_id"], [7, 8, 9])
    one = points[1]
    np.testing.assert_array_equal(one.xy[0], poses.xy[1])
    black = np.zeros((100, 120, 3), np.uint8)
    edges = [(a + 1, b + 1) for a, b in COCO_17.limbs]  # supervision counts from 1
    drawn = supervision.EdgeAnnotator(edges=edges).annotate(black.copy(), points)
    assert drawn.any()
    assert len(make()[[]].to_supervision()) == 0


def test_notebooks_get_a_small_picture() -> None:
    large = make(image=np.zeros((900, 1600, 3), np.uint8))
    data = large._repr_jpeg_()
    assert data is not None
    assert data.startswith(b"\xff\xd8")  # JPEG
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (450, 800, 3)
    assert make(image=None)._repr_jpeg_() is None


def test_speed_has_two_names() -> None:
    assert POSES.speed is POSES.speed_ms


def test_plot_tells_ids_and_spread() -> None:
    poses = make(covariance=np.tile(np.diag([9.0, 25.0]), (N, K, 1, 1)))
    plain = poses.plot(ids=False)
    assert (poses.plot() != plain).any()
    assert (poses.plot(ids=False, covariance=True) != plain).any()
    np.testing.assert_array_equal(dataclasses.replace(poses, ids=None).plot(), plain)
