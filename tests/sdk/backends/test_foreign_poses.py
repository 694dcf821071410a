"""A foreign pose network in an artifact's place: the error's command, and PRESET:FILE."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cfpose_export.adopt import presets
from cfpose_sdk.backends import foreign
from cfpose_sdk.diagnostics.doctor import model_facts
from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.skeleton import COCO_WHOLEBODY_133, HALPE_26
from tests.export.adopt import networks as nets

IMAGE = {"image": (None, 3, 256, 192)}
FLOAT = {"image": "tensor(float)"}


def test_the_presets_are_those_of_the_export() -> None:
    assert tuple(presets.PRESETS) == foreign.PRESETS


@pytest.mark.parametrize(
    ("name", "outputs", "preset"),
    [
        ("rtmpose-m.onnx", {"simcc_x": (1, 17, 384), "simcc_y": (1, 17, 512)}, "rtmpose"),
        ("end2end.onnx", {"x": (1, 17, 384), "y": (1, 17, 512)}, "rtmpose|simcc-hrnet"),
        ("simcc_hrnet_w32.onnx", {"x": (1, 17, 384), "y": (1, 17, 512)}, "simcc-hrnet"),
        ("rtmw-l.onnx", {"x": (1, 133, 384), "y": (1, 133, 512)}, "rtmw"),
        ("vitpose_small.onnx", {"heatmaps": (None, 17, 64, 48)}, "vitpose"),
        ("HRNet-W32.onnx", {"out": (None, 17, 64, 48)}, "hrnet"),
        ("model.onnx", {"out": (None, 17, 64, 48)}, "hrnet|vitpose|tinypose"),
    ],
)
def test_the_command_names_the_preset(
    name: str, outputs: dict[str, Sequence[int | None]], preset: str
) -> None:
    said = foreign.adopt_hint(Path(name), IMAGE, FLOAT, outputs)
    assert f"cfpose-export adopt {name} --preset {preset} --license" in said


def test_the_command_names_the_file_where_it_lies() -> None:
    said = foreign.adopt_hint(Path("my nets/hrnet.onnx"), IMAGE, FLOAT, {"o": (None, 17, 64, 48)})
    assert "cfpose-export adopt 'my nets/hrnet.onnx' --preset hrnet" in said


def test_what_is_no_pose_network_gets_no_preset() -> None:
    for outputs in ({"logits": (1, 1000)}, {"a": (1, 1, 40, 40), "b": (1, 1, 20, 20),
                                            "c": (1, 1, 10, 10)}):  # fmt: skip
        assert "adopt" not in foreign.adopt_hint(Path("net.onnx"), IMAGE, FLOAT, outputs)


def test_a_foreign_file_in_the_place_of_an_artifact(tmp_path: Path) -> None:
    path = tmp_path / "movenet.onnx"
    path.write_bytes(nets.movenet_like().SerializeToString())
    with pytest.raises(ArtifactError, match=re.escape(f"adopt {path} --preset movenet --license")):
        PoseEstimator(path)


def test_prefixes() -> None:
    assert foreign.split_preset("movenet:a/b.onnx") == ("movenet", Path("a/b.onnx"))
    assert foreign.split_preset("simcc-hrnet:b.onnx") == ("simcc-hrnet", Path("b.onnx"))
    for plain in ("b.onnx", "C:b.onnx", "yolo:b.onnx", "rtmlib:b.onnx"):
        assert foreign.split_preset(plain) is None


def test_adopted_into_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(foreign.CACHE_VARIABLE, str(tmp_path / "cache"))
    path = tmp_path / "movenet.onnx"
    path.write_bytes(nets.movenet_like(side=192).SerializeToString())
    artifact = foreign.adopted_file("movenet", path)
    assert list((tmp_path / "cache" / "adopted").iterdir()) == [artifact]
    with PoseEstimator(artifact, device="cpu") as estimator:
        assert estimator.spec.license == "not stated"
        assert estimator.spec.box_scale == 1.25
        assert not estimator.info.calibrated
        photo = np.full((80, 60, 3), 90, np.uint8)
        poses = estimator.predict(photo, boxes=[[1, 1, 50, 70]])
        assert repr(poses) == "Poses(1 people x 17 joints, uncalibrated)"
    facts = model_facts(str(artifact))
    assert facts["calibrated"] is False
    assert facts["source"] == "movenet.onnx"

    def no_child(*_: object, **__: object) -> None:
        raise AssertionError("it is in the cache")

    monkeypatch.setattr(foreign.subprocess, "run", no_child)
    assert foreign.adopted_file("movenet", path) == artifact


def test_what_cannot_be_adopted_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(foreign.CACHE_VARIABLE, str(tmp_path / "cache"))
    path = tmp_path / "net.onnx"
    path.write_bytes(nets.movenet_like().SerializeToString())
    with pytest.raises(ArtifactError, match=r"adopted as rtmpose: .*--preset movenet"):
        foreign.adopted_file("rtmpose", path)
    assert list((tmp_path / "cache" / "adopted").iterdir()) == []
    with pytest.raises(ArtifactError, match="does not exist"):
        foreign.adopted_file("movenet", tmp_path / "none.onnx")


def test_further_skeletons() -> None:
    """Counts, and that left and right of a pair differ by their side alone where names tell."""
    assert (len(HALPE_26), len(COCO_WHOLEBODY_133)) == (26, 133)
    assert len(COCO_WHOLEBODY_133.flip_pairs) == 8 + 3 + 29 + 21
    for skeleton in (HALPE_26, COCO_WHOLEBODY_133):
        for a, b in skeleton.flip_pairs:
            left, right = skeleton.keypoints[a], skeleton.keypoints[b]
            assert left.startswith("face_") or left.replace("left", "right") == right
        for a, b in skeleton.limbs:
            sides = {skeleton.keypoints[j].split("_")[0] for j in (a, b)} & {"left", "right"}
            shoulders_or_hips = abs(a - b) == 1
            assert len(sides) <= 1 or shoulders_or_hips


def test_faces_and_hands_are_drawn_fine() -> None:
    """The same 133 points, drawn as body joints, cover far more of the picture."""
    import dataclasses

    from cfpose_sdk.media.draw import draw_poses

    plain = dataclasses.replace(
        COCO_WHOLEBODY_133, keypoints=tuple(f"joint{n}" for n in range(133))
    )
    canvas = np.zeros((400, 400, 3), np.uint8)
    xy = np.random.default_rng(0).uniform(40, 360, (1, 133, 2))
    boxes = np.array([[20.0, 20, 380, 380]])
    drawn = [
        draw_poses(canvas, xy, np.ones((1, 133)), boxes, skeleton, threshold=0.3)
        for skeleton in (COCO_WHOLEBODY_133, plain)
    ]
    fine, coarse = (int((picture > 0).any(axis=2).sum()) for picture in drawn)
    assert fine < 0.7 * coarse
