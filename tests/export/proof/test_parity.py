"""The proof: what it measures, what it lets pass, and what it stops."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from cfpose_export.graph.rules import read_spec
from cfpose_export.proof.compare import Bounds
from cfpose_export.proof.crops import Crops, read_people
from cfpose_export.proof.pose import BATCHES, POOL, Drift, judge, measure, write_proven
from cfpose_sdk import files
from cfpose_sdk.backends import open_backend
from cfpose_sdk.crops import crop_transforms, extract_crops
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.files import demo_photos
from cfpose_sdk.keypoints import calibrate, decode_simcc
from cfpose_training.nets.fused import FusedPose
from cfpose_training.nets.pose_net import RefinedPoseNet

ALL_JOINTS = Bounds(min_confidence=0.0)
PASSING = Drift("subbin", 42, 100, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.0, 0, "CPUExecutionProvider")


@pytest.fixture(scope="session")
def crops(fused: FusedPose) -> Crops:
    return read_people(None, fused.spec)


def perturb(model: onnx.ModelProto, factor: float) -> None:
    """Scale the largest weight tensor."""
    tensor = max(model.graph.initializer, key=lambda t: math.prod(t.dims))
    array = numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def test_graph_equals_torch_on_real_people(
    fused: FusedPose, model: onnx.ModelProto, crops: Crops
) -> None:
    drift = measure(fused, model, crops, Bounds())
    assert drift.joints > 100
    assert drift.max_px <= 0.05
    assert drift.mean_px <= drift.p99_px <= drift.max_px
    assert drift.coarse_max_px <= 0.05
    assert drift.logit_max <= 1e-3
    assert drift.crops == sum(BATCHES) == len(crops)
    judge(drift, Bounds())


@pytest.mark.parametrize("people", [0, 1, 2, 7, 32])
def test_any_number_of_people(
    fused: FusedPose, model: onnx.ModelProto, crops: Crops, people: int, tmp_path: Path
) -> None:
    onnx.save_model(model, tmp_path / "model.onnx")
    with open_backend(tmp_path / "model.onnx", device="cpu") as backend:
        got = backend.run({"crops": crops[:people]})
    expected = fused.run(torch.from_numpy(crops[:people]))
    assert got["keypoints"].shape == got["coarse"].shape == (people, 17, 2)
    assert got["confidence"].shape == (people, 17)
    sure = expected.confidence.numpy() >= 0.3
    for name in ("keypoints", "coarse"):
        difference = got[name] - getattr(expected, name).numpy()
        assert np.abs(difference[sure]).max(initial=0) <= 0.05


def test_decode_in_the_graph_equals_the_numpy_reference(
    fused: FusedPose, model: onnx.ModelProto, crops: Crops
) -> None:
    """From logits on, the graph and the SDK's reference must agree: no torch in between."""
    for name in ("x_logits", "y_logits"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = ["coarse", "confidence", "x_logits", "y_logits"]
    coarse, confidence, x, y = session.run(names, {"crops": crops})
    xy, score = decode_simcc(x, y, fused.spec.split_ratio, "subbin")
    np.testing.assert_allclose(coarse, xy, atol=2e-3)
    np.testing.assert_allclose(confidence, calibrate(score, (0.8, 0.3)), atol=1e-3)


def test_colours_and_scaling_are_those_of_the_spec(fused: FusedPose, crops: Crops) -> None:
    """The network sees RGB in ImageNet units: checked on the input of the backbone."""
    seen: list[torch.Tensor] = []
    hook = fused.pose.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    fused.run(torch.from_numpy(crops[:2]))
    hook.remove()
    rgb = crops[:2, :, :, ::-1].astype(np.float64) / 255
    expected = (rgb - np.array(fused.spec.mean_rgb)) / np.array(fused.spec.std_rgb)
    np.testing.assert_allclose(seen[0].permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_without_a_refiner_keypoints_are_the_coarse_pose(
    crops: Crops, unrefined: tuple[FusedPose, onnx.ModelProto]
) -> None:
    fused, model = unrefined
    assert not [node for node in model.graph.node if node.op_type == "GridSample"]
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    keypoints, coarse = session.run(["keypoints", "coarse"], {"crops": crops[:3]})
    np.testing.assert_array_equal(keypoints, coarse)
    judge(measure(fused, model, crops, Bounds()), Bounds())


def test_a_proven_graph_is_written_whole(
    fused: FusedPose, model: onnx.ModelProto, crops: Crops, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "model.onnx"
    drift = write_proven(path, fused, model, crops, Bounds())
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.gate.json", "model.onnx"]
    assert json.loads(path.with_suffix(".gate.json").read_text())["max_px"] == drift.max_px
    written = onnx.load_model(path)
    assert written.graph == model.graph
    spec = read_spec(written)
    assert dataclasses.replace(spec, gate={}) == fused.spec
    assert spec.gate["batches"] == [0, 1, 2, 7, 32]
    assert drift.max_px <= spec.gate["max_px"] <= 0.05
    assert json.loads(drift.to_json())["joints"] == drift.joints
    assert read_spec(model) == fused.spec  # the caller's graph is left alone


@pytest.mark.parametrize("before", [None, b"the good one"])
def test_a_wrong_weight_stops_the_export(
    fused: FusedPose, model: onnx.ModelProto, crops: Crops, tmp_path: Path, before: bytes | None
) -> None:
    path = tmp_path / "model.onnx"
    if before is not None:
        path.write_bytes(before)
    perturb(model, 1.01)
    with pytest.raises(ExportError, match=r"keypoints drift by .* px, allowed 0\.05"):
        write_proven(path, fused, model, crops, ALL_JOINTS)
    assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else ["model.onnx"])
    assert before is None or path.read_bytes() == before


def test_a_wrong_calibration_stops_the_export(
    model: onnx.ModelProto, fused: FusedPose, crops: Crops
) -> None:
    other = FusedPose(_network(fused), dataclasses.replace(fused.spec, calibration=(0.8, 0.35)))
    with pytest.raises(ExportError, match="confidences differ"):
        judge(measure(other, model, crops, Bounds()), Bounds())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints": 0, "max_px": math.nan}, "no joint of 42 crops reaches confidence"),
        ({"max_px": 0.051}, "keypoints drift by 0.051 px"),
        ({"max_px": math.nan}, "keypoints drift by nan px"),
        ({"coarse_max_px": 0.3}, "coarse poses drift by 0.3 px"),
        ({"confidence_max": 0.1}, "confidences differ by 0.1"),
        ({"spread_max": 0.06}, "covariances differ by 0.06 of their deviations, allowed 0.05"),
        ({"spread_max": math.inf}, "variance that is not positive"),
        ({"spread_max": math.nan}, "covariance is not finite"),
        ({"decode": "argmax", "logit_max": 5e-3}, "logits differ by 0.005, allowed 0.0045"),
        ({"decode": "argmax", "logit_max": 2e-3, "logit_largest": 1.0}, "allowed 0.001"),
    ],
)
def test_what_the_judge_stops(change: dict[str, float], message: str) -> None:
    judge(PASSING, Bounds())
    with pytest.raises(ExportError, match=message):
        judge(dataclasses.replace(PASSING, **change), Bounds())


def test_argmax_on_the_full_size_network(w32_argmax: tuple[FusedPose, onnx.ModelProto]) -> None:
    fused, model = w32_argmax
    crops = read_people(None, fused.spec)
    drift = measure(fused, model, crops, ALL_JOINTS)
    assert drift.logit_max <= 1e-3
    assert drift.bin_flips <= 0.001 * POOL * 17 * 2
    assert drift.max_px <= 0.05
    judge(drift, ALL_JOINTS)


def test_a_flipped_bin_is_counted_and_set_aside(
    tiny_argmax: tuple[FusedPose, onnx.ModelProto],
) -> None:
    """A graph in which bin 0 of x wins everywhere flips every x coordinate and no y."""
    fused, model = tiny_argmax
    shifted = onnx.ModelProto()
    shifted.CopyFrom(model)
    finish = next(n for n in shifted.graph.node if "x_logits" in n.output)
    bias = next(t for t in shifted.graph.initializer if t.name in finish.input and len(t.dims) == 1)
    array = numpy_helper.to_array(bias).copy()
    array[0] += 1e4
    bias.CopyFrom(numpy_helper.from_array(array, bias.name))
    drift = measure(fused, shifted, read_people(None, fused.spec), ALL_JOINTS)
    assert 0.9 * POOL * 17 <= drift.bin_flips <= POOL * 17
    with pytest.raises(ExportError, match="no joint"):
        judge(drift, ALL_JOINTS)


def test_people_of_the_demo_photos(root: Path, fused: FusedPose) -> None:
    """The first crops are the listed boxes themselves, the others differ from them."""
    spec, folder = fused.spec, root / "examples" / "photos"
    crops = read_people(None, spec)
    boxes = json.loads((folder / "people.json").read_text())
    first, name = [], next(iter(boxes))
    for box in boxes[name]:
        transform = crop_transforms([box], spec.size_wh, spec.box_scale)
        first.append(extract_crops(cv2.imread(str(folder / name)), transform, spec.size_wh)[0])
    np.testing.assert_array_equal(crops[: len(first)], first)
    assert len(crops) == POOL
    assert len({crop.tobytes() for crop in crops}) == POOL


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "people.json does not exist; give a folder"),
        ("{", "is not a map of file names to boxes"),
        ("[1]", "is not a map of file names to boxes"),
        ('{"a.jpg": [[1, 2, 3]]}', "is not a map of file names to boxes"),
        ('{"a.jpg": []}', "names no people"),
        ("{}", "names no people"),
    ],
)
def test_unusable_photo_folders(
    tmp_path: Path, fused: FusedPose, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "people.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_people(tmp_path, fused.spec)


def test_too_few_crops(fused: FusedPose, model: onnx.ModelProto, crops: Crops) -> None:
    with pytest.raises(InputError, match="needs 42 crops, got 3"):
        measure(fused, model, crops[:3], Bounds())


def _network(fused: FusedPose) -> torch.nn.Module:
    assert fused.refiner is not None
    return RefinedPoseNet(fused.pose, fused.refiner, fused.spec)


def test_an_installed_package_has_its_own_photos(
    fused: FusedPose, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo_photos() == root / "examples" / "photos"
    package = tmp_path / "site-packages" / "cfpose_sdk"
    shutil.copytree(root / "examples" / "photos", package / "photos")  # as in the wheel
    monkeypatch.setattr(files, "__file__", str(package / "files.py"))
    assert demo_photos() == package / "photos"
    assert len(read_people(None, fused.spec, 3)) == 3
