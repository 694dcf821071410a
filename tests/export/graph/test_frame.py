"""Whole frames and boxes in: the sampler against float64 and OpenCV, the graph against torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from cfpose_export.cli import main
from cfpose_export.graph.frame_input import CORE_INPUT, core_graph, frame_graph
from cfpose_export.graph.rules import (
    FRAME_INPUTS,
    LOGITS,
    POSE_OUTPUTS,
    SAMPLER_SCOPE,
    check_graph,
    element_types,
    read_spec,
    scopes,
)
from cfpose_export.proof.compare import Bounds
from cfpose_export.proof.frame import SIZES_WH, judge_frame, measure_frame, sample_crops
from cfpose_sdk.crops import crop_transforms, extract_crops, invert_transforms, transform_points
from cfpose_sdk.diagnostics.known_answers import BOUNDS
from cfpose_sdk.errors import ExportError, InputError
from cfpose_sdk.estimator import BUNDLED_MODEL, PoseEstimator
from cfpose_sdk.media.image import read_image
from cfpose_training.checkpoints.files import save_pose
from cfpose_training.nets.fused import FusedPose
from cfpose_training.nets.pose_net import RefinedPoseNet
from tests.export.graph_cases import scaled_covariance

# of a frame (w, h): a person, one cut by the border, tiny, huge, outside
BOXES = [
    [0.2, 0.2, 0.5, 0.9], [-0.1, 0.5, 0.3, 1.2], [0.4, 0.4, 0.41, 0.42], [-1, -1, 2, 2],
    [2, 2, 3, 3],
]  # fmt: skip


class Graph:
    """An onnxruntime session that gives values inside the graph too."""

    def __init__(self, model: onnx.ModelProto, *inside: str) -> None:
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        for name in inside:
            probe.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
        self.session = onnxruntime.InferenceSession(
            probe.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, frame: np.ndarray, boxes: Any) -> dict[str, np.ndarray]:
        feeds = {"frame": frame, "boxes": np.asarray(boxes, np.float32).reshape(-1, 4)}
        return dict(zip(self.names, self.session.run(None, feeds), strict=True))


@pytest.fixture(scope="session")
def crops_model(_built: onnx.ModelProto) -> onnx.ModelProto:
    """The crops-in graph of `fused`; not to be changed."""
    return _built


@pytest.fixture(scope="session")
def graphs(crops_model: onnx.ModelProto) -> dict[int, Graph]:
    """Frame-in graphs of `fused` by antialias, with the sampled crops and the logits."""
    return {s: Graph(frame_graph(crops_model, s), CORE_INPUT, *LOGITS) for s in (1, 3)}


@pytest.fixture(scope="session")
def street(root: Path) -> np.ndarray:
    return read_image(root / "examples" / "photos" / "street.jpg")


def test_surface(crops_model: onnx.ModelProto) -> None:
    def shapes(values: Any) -> dict[str, list[object]]:
        return {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in values
        }

    model = frame_graph(crops_model)
    assert shapes(model.graph.input) == {"frame": ["h", "w", 3], "boxes": ["N", 4]}
    kinds = [value.type.tensor_type.elem_type for value in model.graph.input]
    assert kinds == [TensorProto.UINT8, TensorProto.FLOAT]
    assert shapes(model.graph.output) == {
        "keypoints": ["N", 17, 2],
        "confidence": ["N", 17],
        "covariance": ["N", 17, 2, 2],
        "coarse": ["N", 17, 2],
    }
    spec = read_spec(model)
    assert dataclasses.replace(spec, input="crops") == read_spec(crops_model)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}


def test_the_core_is_the_same_and_the_sampler_is_marked(crops_model: onnx.ModelProto) -> None:
    model = frame_graph(crops_model, 2)
    own = [node for node in model.graph.node if SAMPLER_SCOPE in scopes(node)]
    core = [node for node in model.graph.node if SAMPLER_SCOPE not in scopes(node)]
    before = list(crops_model.graph.node)[1:]  # without the Cast of the crops
    assert [(n.op_type, n.name, scopes(n)) for n in core] == [
        (n.op_type, n.name, scopes(n)) for n in before
    ]
    weights = {t.name: t.SerializeToString() for t in model.graph.initializer}
    assert all(weights[t.name] == t.SerializeToString() for t in crops_model.graph.initializer)
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))
    # one GridSample for all people, float32 throughout, nothing to fold
    types = element_types(model)
    (sampler,) = (node for node in own if node.op_type == "GridSample")
    assert {types[name] for name in sampler.input} == {TensorProto.FLOAT}
    assert {types[v] for n in own for v in n.output} <= {TensorProto.FLOAT, TensorProto.INT64}
    assert [n.name for n in own if set(n.input) <= weights.keys()] == []


def test_the_same_graph_gives_the_same_bytes(crops_model: onnx.ModelProto) -> None:
    for taps in (1, 2):
        first, second = (
            frame_graph(crops_model, taps).SerializeToString(deterministic=True) for _ in range(2)
        )
        assert first == second


def test_padding_is_told_apart_by_the_scope(crops_model: onnx.ModelProto) -> None:
    model = frame_graph(crops_model)
    for node in model.graph.node:
        if node.op_type == "GridSample":
            changed = onnx.ModelProto()
            changed.CopyFrom(model)
            twin = next(n for n in changed.graph.node if n.name == node.name)
            wrong = "border" if SAMPLER_SCOPE in scopes(node) else "zeros"
            (padding,) = (a for a in twin.attribute if a.name == "padding_mode")
            padding.s = wrong.encode()
            with pytest.raises(ExportError, match="padding_mode"):
                check_graph(changed, FRAME_INPUTS, POSE_OUTPUTS)


@settings(max_examples=20)
@given(
    boxes=st.lists(
        st.tuples(
            st.floats(-80, 120), st.floats(-80, 120), st.floats(0.5, 400), st.floats(0.5, 400)
        ),
        max_size=4,
    ),
    shape=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    taps=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**16),
)
def test_the_sampler_is_the_float64_one(
    graphs: dict[int, Graph],
    fused: FusedPose,
    boxes: list[tuple[float, ...]],
    shape: tuple[int, int],
    taps: int,
    seed: int,
) -> None:
    """On noise, where a position that is off by 1e-3 pixels shows as a quarter of a grey level."""
    frame = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    xyxy = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], np.float32).reshape(-1, 4)
    got = graphs[taps](frame, xyxy)[CORE_INPUT]
    expected = sample_crops(frame, xyxy, fused.spec.size_wh, fused.spec.box_scale, taps)
    assert got.shape == expected.shape == (len(boxes), 96, 64, 3)
    assert np.abs(got - expected).max(initial=0) < 0.1


def test_samples_are_opencvs_crops_before_rounding(
    graphs: dict[int, Graph], fused: FusedPose, street: np.ndarray
) -> None:
    """Also where the crop crosses the photo's border, which both blend with black."""
    height, width = street.shape[:2]
    soft = cv2.GaussianBlur(street, (0, 0), 4)  # older OpenCV rounds positions to 1/32 pixel
    boxes = np.array(BOXES) * [width, height, width, height]
    maps = crop_transforms(boxes, fused.spec.size_wh, fused.spec.box_scale)
    crops = extract_crops(soft, maps, fused.spec.size_wh)
    difference = np.abs(graphs[1](soft, boxes)[CORE_INPUT] - crops)
    assert crops[1].min() == 0
    assert crops[1].max() > 0
    assert np.quantile(difference, 0.99) <= 1.0
    assert difference.mean() < 0.5


def test_antialiasing_comes_near_the_mean_over_the_area() -> None:
    """On noise; OpenCV's INTER_AREA is the mean over the area. Nothing changes up to √2."""
    noise = np.random.default_rng(0).integers(0, 256, (96 * 4, 64 * 4, 3), dtype=np.uint8)
    # at box scale 1 this box makes every 4 x 4 block of the frame one crop pixel: crops.py puts the
    # box's centre at (W / 2, H / 2), half a pixel past the middle of the crop
    area = cv2.resize(noise.astype(np.float64), (64, 96), interpolation=cv2.INTER_AREA)
    box = [[1.5, 1.5, 64 * 4 + 1.5, 96 * 4 + 1.5]]
    error = {}
    for taps in (1, 2, 4):
        (crop,) = sample_crops(noise, box, (64, 96), 1.0, taps)
        error[taps] = np.abs(crop - area)[2:-2, 2:-2].mean()
    assert error[2] < 0.75 * error[1]
    assert error[4] < 0.4 * error[1]
    near = [[10, 10, 10 + 64 * 1.4, 10 + 96 * 1.4]]
    plain, tapped = (sample_crops(noise, near, (64, 96), 1.0, taps) for taps in (1, 4))
    np.testing.assert_allclose(tapped, plain, atol=1e-9)


@pytest.mark.parametrize("size_wh", SIZES_WH)
def test_the_graph_equals_torch_on_float64_crops(
    graphs: dict[int, Graph], fused: FusedPose, street: np.ndarray, size_wh: tuple[int, int]
) -> None:
    frame = cv2.resize(street, size_wh)
    boxes = np.array(BOXES) * np.tile(size_wh, 2)
    for taps, graph in graphs.items():
        spec = fused.spec
        got = graph(frame, boxes)
        crops = sample_crops(frame, boxes.astype(np.float32), spec.size_wh, spec.box_scale, taps)
        expected = fused.run(torch.from_numpy(crops.astype(np.float32)))
        back = invert_transforms(crop_transforms(boxes, spec.size_wh, spec.box_scale))
        step = back[:, 0, 0]
        same = [
            (got[name].argmax(axis=2) == getattr(expected, name).numpy().argmax(axis=2)).all(axis=1)
            for name in LOGITS
        ]
        kept = same[0] & same[1]  # a bin flip starts the decoder elsewhere
        assert kept.sum() >= len(boxes) - 1
        for name in ("keypoints", "coarse"):
            right = transform_points(back, getattr(expected, name).numpy())
            pixels = np.linalg.norm(got[name] - right, axis=2)
            # a crop pixel of a huge box is up to 100 frame pixels, and float32 has 7 digits
            assert (pixels[kept] <= 0.05 * np.maximum(1, step[kept, None] / 20)).all()
        spread = expected.covariance.numpy() * step[:, None, None, None] ** 2
        np.testing.assert_allclose(got["covariance"][kept], spread[kept], rtol=2e-3)
        sure = np.abs(got["confidence"] - expected.confidence.numpy())[kept]
        assert sure.max() <= 1e-3


def test_nobody_one_and_many(graphs: dict[int, Graph], street: np.ndarray) -> None:
    height, width = street.shape[:2]
    boxes = np.tile(np.array(BOXES) * [width, height, width, height], (4, 1))
    for graph in graphs.values():
        together = graph(street, boxes)
        for people in (0, 1, 7):
            some = graph(street, boxes[:people])
            for name in POSE_OUTPUTS:
                assert some[name].shape == (people, *together[name].shape[1:])
                np.testing.assert_allclose(some[name], together[name][:people], atol=1e-3)


def test_what_cannot_be_rebuilt_is_refused(crops_model: onnx.ModelProto) -> None:
    framed = frame_graph(crops_model)
    with pytest.raises(InputError, match="takes a frame already"):
        frame_graph(framed)
    other = onnx.ModelProto()
    other.CopyFrom(crops_model)
    other.graph.node.append(onnx.helper.make_node("Identity", ["crops"], ["copy"], name="copy"))
    with pytest.raises(ExportError, match="one Cast to float32"):
        core_graph(other)


def test_a_wrong_sampler_is_stopped(crops_model: onnx.ModelProto) -> None:
    model, bounds = frame_graph(crops_model), Bounds()
    drift = measure_frame(crops_model, model, None, bounds)
    judge_frame(drift, bounds)
    assert drift.joints > 50
    for tensor in model.graph.initializer:
        if tensor.name == "sampler.columns":
            moved = numpy_helper.to_array(tensor) + np.float32(0.02)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    with pytest.raises(ExportError, match=r"the frame-in graph is not the model: .*grey_max"):
        judge_frame(measure_frame(crops_model, model, None, bounds), bounds)
    for factor in (-100, 1.1):
        wrong = scaled_covariance(frame_graph(crops_model), factor)
        with pytest.raises(ExportError, match="covariance"):
            judge_frame(measure_frame(crops_model, wrong, None, bounds), bounds)
    with pytest.raises(ExportError, match="so the comparison says nothing"):
        judge_frame(dataclasses.replace(drift, joints=0), bounds)


def test_the_runtime_gives_the_same_poses(root: Path, tmp_path: Path, street: np.ndarray) -> None:
    """The bundled weights; what remains is OpenCV's rounding of the crops to whole grey levels."""
    path = tmp_path / "frame.onnx"
    assert main(["frame", str(BUNDLED_MODEL), "-o", str(path)]) == 0
    listed = json.loads((root / "examples" / "photos" / "people.json").read_text())["street.jpg"]
    with (
        PoseEstimator(device="cpu") as plain,
        PoseEstimator(path, device="cpu", batch_size=3) as whole,
    ):
        assert whole.spec.input == "frame"
        assert whole.spec.gate["frame"]["max_px"] <= 0.05
        expected = plain.predict(street, boxes=listed)
        found, nobody, again = whole.predict_batch(
            [street, street, street], [listed, [], listed[:1]]
        )
        sliver = whole.predict(street[:1], boxes=[[0, 0, 30, 40]])
    assert len(nobody) == 0
    sure = expected.confidence >= 0.3
    crop_px = np.linalg.norm(found.xy - expected.xy, axis=2)[sure]
    bound = BOUNDS["frame input"]
    assert np.median(crop_px) <= bound.median_px
    assert (crop_px > 1).mean() <= bound.far
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=0.05)
    np.testing.assert_allclose(again.xy, found.xy[:1], atol=1e-3)
    assert sliver.xy.shape == (1, 17, 2)
    first = path.read_bytes()
    assert main(["frame", str(BUNDLED_MODEL), "-o", str(path)]) == 0
    assert path.read_bytes() == first


def test_the_command_exports_and_checks_it(
    fused: FusedPose,
    crops_model: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # tracing is slow
    monkeypatch.setattr("cfpose_export.proof.checkpoint.build_pose", lambda _: crops_model)
    assert fused.refiner is not None
    checkpoint, path = tmp_path / "pose.safetensors", tmp_path / "frame.onnx"
    save_pose(checkpoint, RefinedPoseNet(fused.pose, fused.refiner, fused.spec), fused.spec)
    command = ["onnx", "--checkpoint", str(checkpoint), "-o", str(path), "--antialias", "2"]
    assert main([*command, "--input", "frame"]) == 0
    spec = read_spec(onnx.load_model(path))
    assert (spec.input, spec.antialias) == ("frame", 2)
    assert spec.gate["batches"]
    assert main(["check", str(path), "--checkpoint", str(checkpoint)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-2])["people"] > 0
    unproven = tmp_path / "unproven.onnx"
    onnx.save_model(crops_model, unproven)
    assert main(["frame", str(unproven), "-o", str(path)]) == 1
    assert "carries no proof" in capsys.readouterr().err
