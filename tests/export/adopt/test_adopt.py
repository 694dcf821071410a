"""`cfpose-export adopt` on small networks of known answers, from command to PoseEstimator."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from cfpose_export.cli import main
from cfpose_export.graph.rules import load_model, read_spec
from cfpose_sdk.backends import open_backend
from cfpose_sdk.crops import crop_transforms, extract_crops, invert_transforms, transform_points
from cfpose_sdk.errors import InputError
from cfpose_sdk.estimator import PoseEstimator
from tests.export.adopt import networks as nets

Adopt = Callable[..., Path]


@pytest.fixture
def adopt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Adopt:
    """Writes a network, adopts it with the options, and returns the artifact."""
    skeleton = nets.write_skeleton(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    nets.write_photos(photos)

    def run(network: onnx.ModelProto, options: Sequence[str], *, name: str = "net") -> Path:
        source, target = tmp_path / f"{name}.onnx", tmp_path / f"{name}-adopted.onnx"
        source.write_bytes(network.SerializeToString())
        words = ["adopt", str(source), "-o", str(target), "--license", "MIT", *options]
        if "--skeleton" not in options and "--preset" not in options:
            words += ["--skeleton", str(skeleton)]
        code = main([*words, "--photos", str(photos)])
        assert code == 0, capsys.readouterr().err
        return target

    return run


HEATMAP = [*nets.NAMED, "--decode", "dark", "--geometry", "classic", "--blur", "3", "0.84932"]


def outputs_of(path: Path, crops: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    with open_backend(path, device="cpu") as backend:
        return backend.run({"crops": crops})


def colour_maps(crops: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, 3, 16, 12) what the heatmap network answers, computed by hand: RGB, mean, std, pooled."""
    planes = (crops[..., ::-1].astype(float) - nets.MEAN) / nets.STD
    n, s = len(crops), nets.STRIDE
    cells = planes.reshape(n, nets.HEIGHT // s, s, nets.WIDTH // s, s, 3).mean(axis=(2, 4))
    return cells.transpose(0, 3, 1, 2)


def test_heatmaps_end_to_end(adopt: Adopt) -> None:
    path = adopt(nets.heatmap_network(), HEATMAP)
    crops, spec = nets.blobs(), read_spec(load_model(path))
    got, maps = outputs_of(path, crops), colour_maps(crops)
    flat = maps.reshape(*maps.shape[:2], -1)
    peak = np.stack([flat.argmax(-1) % 12, flat.argmax(-1) // 12], -1) * 4.0
    np.testing.assert_array_equal(got["coarse"], peak)
    np.testing.assert_allclose(got["confidence"], flat.max(-1).clip(0, 1), atol=1e-6)
    assert np.abs(got["keypoints"] - peak).max() > 0.2
    assert np.abs(got["keypoints"] - peak).max() <= 8
    assert np.linalg.eigvalsh(got["covariance"]).min() > 0
    assert spec.license == "MIT"
    assert spec.adopted is not None
    assert not spec.calibrated
    assert (spec.adopted.family, spec.adopted.decode) == ("heatmap", "dark")
    assert spec.adopted.source == "net.onnx"
    assert spec.gate["joints"] > 0
    empty = outputs_of(path, crops[:0])
    assert empty["covariance"].shape == (0, 3, 2, 2)


def test_the_source_is_named_by_its_hash(adopt: Adopt, tmp_path: Path) -> None:
    import hashlib

    path = adopt(nets.heatmap_network(), HEATMAP)
    adopted = read_spec(load_model(path)).adopted
    assert adopted is not None
    assert adopted.sha256 == hashlib.sha256((tmp_path / "net.onnx").read_bytes()).hexdigest()


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_older_opsets_give_the_same_answers(adopt: Adopt, opset: int) -> None:
    path = adopt(nets.heatmap_network(opset=opset), HEATMAP, name=f"at{opset}")
    crops = nets.blobs()
    maps = colour_maps(crops)
    np.testing.assert_allclose(
        outputs_of(path, crops)["confidence"], maps.max(axis=(2, 3)).clip(0, 1), atol=1e-6
    )


def test_colour_order_changes_the_joints(adopt: Adopt) -> None:
    crops = nets.blobs()
    wrong = ["bgr" if word == "rgb" else word for word in HEATMAP]
    right = outputs_of(adopt(nets.heatmap_network(), HEATMAP), crops)["coarse"]
    swapped = outputs_of(adopt(nets.heatmap_network(), wrong, name="bgr"), crops)["coarse"]
    np.testing.assert_array_equal(swapped[:, ::-1], right)


def test_a_person_in_a_photo(adopt: Adopt) -> None:
    """Through PoseEstimator: what the crop says, put back into the photo."""
    path = adopt(nets.heatmap_network(), HEATMAP)
    photo = np.concatenate(list(nets.blobs(3, seed=2)), axis=1)
    boxes = np.array([[50.0, 5, 90, 60], [-10, -8, 40, 70]])
    with PoseEstimator(path, device="cpu") as estimator:
        poses = estimator.predict(photo, boxes=boxes)
    onto = crop_transforms(boxes, (48, 64), 1.25)
    crops = extract_crops(photo, onto, (48, 64))
    back = transform_points(invert_transforms(onto), outputs_of(path, crops)["keypoints"])
    np.testing.assert_allclose(poses.xy, back, atol=1e-3)


def test_udp_geometry_is_that_of_the_crop_and_of_the_maps(adopt: Adopt) -> None:
    """A region's edges are the outer pixels' centres, of crop and map alike."""
    path = adopt(nets.heatmap_network(), [*nets.NAMED, "--decode", "argmax", "--geometry", "udp"])
    spec = read_spec(load_model(path))
    assert spec.geometry == "udp"
    crops = nets.blobs()
    coarse = outputs_of(path, crops)["coarse"]
    maps = colour_maps(crops).reshape(len(crops), 3, -1).argmax(-1)
    right = np.stack([maps % 12 * 47 / 11, maps // 12 * 63 / 15], -1)
    np.testing.assert_allclose(coarse, right, rtol=1e-6)
    onto = crop_transforms([[0, 0, 30, 40]], (48, 64), 1.0, geometry="udp")
    corners = transform_points(onto, [[[0, 0], [30, 40], [15, 20]]])[0]
    np.testing.assert_allclose(corners, [[0, 0], [47, 63], [23.5, 31.5]], atol=1e-9)


@pytest.mark.parametrize("geometry", ["classic", "udp"])
def test_frame_input_agrees_with_crops(adopt: Adopt, geometry: str) -> None:
    base = [*nets.NAMED, "--decode", "dark-udp", "--blur", "3", "0.8", "--geometry", geometry]
    crops_in = adopt(nets.heatmap_network(), base)
    frame_in = adopt(nets.heatmap_network(), [*base, "--input", "frame"], name="frame")
    photo = np.concatenate(list(nets.blobs(3, seed=2)), axis=1)
    boxes = np.array([[50.0, 5, 90, 60], [-10, -8, 40, 70], [3, 4, 140, 60]])
    with PoseEstimator(crops_in, device="cpu") as a, PoseEstimator(frame_in, device="cpu") as b:
        assert b.spec.input == "frame"
        one, other = a.predict(photo, boxes=boxes), b.predict(photo, boxes=boxes)
    step = np.array([55, 78, 137]) * 1.25 / 64
    far = np.linalg.norm(one.xy - other.xy, axis=2)[one.confidence > 0.3] / step.max()
    assert far.max() < 0.3
    assert np.median(far) < 0.05
    assert one.covariance is not None
    assert other.covariance is not None
    sure = one.confidence > 0.3
    np.testing.assert_allclose(one.covariance[sure], other.covariance[sure], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("geometry", ["classic", "udp"])
def test_flip_test_averages_maps(adopt: Adopt, geometry: str) -> None:
    """A crop that is its own mirror image, left and right swapped, answers symmetrically."""
    base = [*nets.NAMED, "--decode", "argmax", "--geometry", geometry, "--flip-test"]
    path = adopt(nets.heatmap_network(), base)
    assert read_spec(load_model(path)).flip_test
    crops = nets.blobs()
    maps, mirrored = colour_maps(crops), colour_maps(crops[:, :, ::-1])[..., ::-1][:, [0, 2, 1]]
    if geometry == "classic":  # HRNet's shift by a pixel
        mirrored = np.concatenate([mirrored[..., :1], mirrored[..., :-1]], axis=-1)
    both = (maps + mirrored) / 2
    np.testing.assert_allclose(
        outputs_of(path, crops)["confidence"], both.max(axis=(2, 3)).clip(0, 1), atol=1e-6
    )


SIMCC = [*nets.NAMED, "--geometry", "classic"]


def test_simcc_scores(adopt: Adopt) -> None:
    options = [*SIMCC, "--values", "scores", "--decode", "argmax", "--score", "min"]
    path = adopt(nets.simcc_network(), options)
    spec = read_spec(load_model(path))
    assert spec.split_ratio == 2
    assert spec.decode == "argmax"
    crops = nets.blobs()
    planes = ((crops[..., ::-1] - np.array(nets.MEAN)) / nets.STD).transpose(0, 3, 1, 2)
    x, y = planes.sum(axis=2), planes.sum(axis=3)
    got = outputs_of(path, crops)
    right = np.stack([x.argmax(-1), y.argmax(-1)], -1)
    np.testing.assert_allclose(got["keypoints"], right, atol=0.51)
    top = np.minimum(x.max(-1), y.max(-1)) * 0.1
    np.testing.assert_allclose(got["confidence"], top.clip(0, 1), rtol=1e-4)


def test_softmax_vectors_are_probabilities_whatever_is_said(adopt: Adopt) -> None:
    options = [*SIMCC, "--values", "logits", "--decode", "subbin", "--min-confidence", "0"]
    path = adopt(nets.simcc_network(softmax=True), options)
    adopted = read_spec(load_model(path)).adopted
    assert adopted is not None
    assert adopted.settings["values"] == "probabilities"


def test_simcc_flip_is_exact(adopt: Adopt) -> None:
    """x → W − 1 − x on bins: a symmetric crop keeps its middle."""
    options = [*SIMCC, "--values", "scores", "--decode", "argmax", "--flip-test"]
    options += ["--mean", "0", "0", "0"]
    path = adopt(nets.simcc_network(), options)
    crops = np.zeros((1, nets.HEIGHT, nets.WIDTH, 3), np.uint8)
    crops[:, 20, 10] = 255
    crops[:, 20, nets.WIDTH - 1 - 10] = 255  # joints 1 and 2 mirror each other
    got = outputs_of(path, crops)["keypoints"][0]
    assert set(np.round(got[:, 0])) <= {10.0, 37.0}
    assert got[1, 1] == 20


def test_fixed_batch_is_opened_where_the_graph_allows(adopt: Adopt) -> None:
    path = adopt(nets.heatmap_network(batch=4), HEATMAP, name="four")
    adopted = read_spec(load_model(path)).adopted
    assert adopted is not None
    assert adopted.batch == 0
    assert adopted.settings["file_batch"] == 4
    assert len(outputs_of(path, nets.blobs(7))["keypoints"]) == 7


MOVENET = ["--preset", "movenet", "--box-scale", "1.2", "--min-confidence", "0"]


@pytest.mark.parametrize("batch", [1, 4])
def test_coordinates_of_a_fixed_batch(adopt: Adopt, batch: int) -> None:
    path = adopt(nets.movenet_like(batch), MOVENET)
    spec = read_spec(load_model(path))
    assert spec.adopted is not None
    assert spec.adopted.batch == 0  # its Reshape names the batch, and no more
    assert spec.box_scale == 1.2
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    got = outputs_of(path, crops)
    session = onnxruntime.InferenceSession(str(path.with_name("net.onnx")))
    full = np.resize(crops[..., ::-1].astype(np.int32), (4, 64, 64, 3))[: max(batch, 1)]
    rows = session.run(None, {"image": full})[0][:, 0]
    np.testing.assert_allclose(got["keypoints"][:1], rows[:1, :, 1::-1] * 64, rtol=1e-5)
    np.testing.assert_allclose(got["confidence"][:1], rows[:1, :, 2], rtol=1e-5)


@pytest.mark.parametrize("is_cast_at_once", [True, False])
def test_whole_levels_are_rounded_only_where_the_network_needs_them(
    adopt: Adopt, is_cast_at_once: bool
) -> None:
    """A frame's samples are not whole; a network that makes them float32 at once takes them so."""
    network = nets.movenet_like()
    if not is_cast_at_once:
        network.graph.node[0].input[0] = "same"
        network.graph.node.insert(0, onnx.helper.make_node("Identity", ["image"], ["same"]))
    path = adopt(network, MOVENET)
    kinds = [node.op_type for node in load_model(path).graph.node]
    assert ("Round" in kinds) is not is_cast_at_once
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    got = outputs_of(path, crops)["keypoints"]
    session = onnxruntime.InferenceSession(str(path.with_name("net.onnx")))
    for crop, found in zip(crops, got, strict=True):
        rows = session.run(None, {"image": crop[None, ..., ::-1].astype(np.int32)})[0][0, 0]
        np.testing.assert_allclose(found, rows[:, 1::-1] * 64, rtol=1e-5)


def test_a_batch_that_cannot_be_opened_runs_in_chunks(adopt: Adopt) -> None:
    """An answer that depends on a crop's place in its batch shows that the batch is fixed."""
    network = nets.heatmap_network(batch=2)
    gain = np.array([1.0, 0.5], np.float32).reshape(2, 1, 1, 1)
    network.graph.node[0].output[0] = "plain"
    network.graph.initializer.append(onnx.numpy_helper.from_array(gain, "gain"))
    network.graph.node.append(onnx.helper.make_node("Mul", ["plain", "gain"], ["heatmaps"]))
    path = adopt(network, HEATMAP, name="pairs")
    adopted = read_spec(load_model(path)).adopted
    assert adopted is not None
    assert adopted.batch == 2
    crops = nets.blobs(5)
    got = outputs_of(path, crops)
    top = colour_maps(crops).max(axis=(2, 3)).clip(0, 1)
    top[1::2] *= 0.5
    np.testing.assert_allclose(got["confidence"], top, atol=1e-6)
    assert outputs_of(path, crops[:0])["keypoints"].shape == (0, 3, 2)
    photo = np.concatenate(list(crops), axis=1)
    with PoseEstimator(path, device="cpu") as estimator:
        assert len(estimator.predict(photo, boxes=[[5, 5, 40, 60]] * 3)) == 3


def test_float16_pixels_and_weights(adopt: Adopt) -> None:
    half = {"pool": nets.POOL["pool"].astype(np.float16)}
    network = nets.model_of(
        [nets.pooling("image", "heatmaps")], {"heatmaps": ("N", 3, 16, 12)}, half,
        kind=onnx.TensorProto.FLOAT16, out_kind=onnx.TensorProto.FLOAT16,
    )  # fmt: skip
    path = adopt(network, HEATMAP, name="half")
    spec = read_spec(load_model(path))
    assert spec.precision == "fp16"
    got = outputs_of(path, nets.blobs())
    assert got["keypoints"].dtype == np.float32
    top = colour_maps(nets.blobs()).max(axis=(2, 3)).clip(0, 1)
    np.testing.assert_allclose(got["confidence"], top, atol=2e-3)


def test_a_quantised_graph_says_so(adopt: Adopt) -> None:
    network = nets.heatmap_network()
    graph = network.graph
    graph.node[0].input[0] = "rounded"
    for name, value in (("scale", np.array(1 / 100, np.float32)), ("zero", np.array(0, np.int8))):
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    make = onnx.helper.make_node
    graph.node.insert(0, make("DequantizeLinear", ["whole", "scale", "zero"], ["rounded"]))
    graph.node.insert(0, make("QuantizeLinear", ["image", "scale", "zero"], ["whole"]))
    path = adopt(network, HEATMAP, name="int8")
    assert read_spec(load_model(path)).precision == "int8"


def test_external_weights(adopt: Adopt, tmp_path: Path) -> None:
    """Adopted from a file with its weights beside it, the artifact is whole."""
    network = nets.heatmap_network()
    onnx.save_model(
        network, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.data",
        size_threshold=0,
    )  # fmt: skip
    target, skeleton = tmp_path / "whole.onnx", str(tmp_path / "three.json")
    words = ["adopt", str(tmp_path / "apart.onnx"), "-o", str(target), "--license", "MIT"]
    words += [*HEATMAP, "--skeleton", skeleton, "--photos", str(tmp_path / "photos")]
    adopt(network, HEATMAP)
    assert main(words) == 0
    (tmp_path / "apart.data").unlink()
    assert len(outputs_of(target, nets.blobs())["keypoints"]) == 4


def test_calibration_and_check(
    adopt: Adopt, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On annotations that are where the network puts the joints, confidence becomes high."""
    source = tmp_path / "net.onnx"
    adopt(nets.heatmap_network(), HEATMAP)
    capsys.readouterr()
    data = tmp_path / "data.json"
    data.write_text(json.dumps(annotated(tmp_path)), encoding="utf-8")
    target = tmp_path / "calibrated.onnx"
    words = ["adopt", str(source), "-o", str(target), "--license", "MIT", *HEATMAP]
    words += ["--skeleton", str(tmp_path / "three.json"), "--photos", str(tmp_path / "photos")]
    words += ["--calibrate", str(data), "--check", str(data), "--images", str(tmp_path / "photos")]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["check"]["AP"] == 1.0
    assert said["calibration"]["good"] == 1.0
    spec = read_spec(load_model(target))
    assert spec.calibrated
    assert spec.calibration != (1.0, 0.0)
    got = outputs_of(target, nets.blobs())
    assert got["confidence"].max() > 0.9


def annotated(folder: Path) -> dict[str, Any]:
    """COCO annotations of the photo of blobs: what the uncalibrated artifact answers, exactly."""
    boxes = json.loads((folder / "photos" / "people.json").read_text())["blobs.png"]
    with PoseEstimator(folder / "net-adopted.onnx", device="cpu") as estimator:
        poses = estimator.predict(folder / "photos" / "blobs.png", boxes=boxes)
    width, height = poses.image_size_wh
    people = [
        {
            "id": n + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "num_keypoints": 3,
            "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
            "keypoints": np.column_stack([poses.xy[n], np.full(3, 2)]).ravel().tolist(),
        }
        for n, (x1, y1, x2, y2) in enumerate(boxes)
    ]  # fmt: skip
    category = {"id": 1, "name": "person", "keypoints": list(nets.JOINTS), "skeleton": []}
    photo = {"id": 1, "file_name": "blobs.png", "width": width, "height": height}
    return {"images": [photo], "annotations": people, "categories": [category]}


def test_equal_files_give_equal_bytes(adopt: Adopt) -> None:
    first = adopt(nets.heatmap_network(), HEATMAP).read_bytes()
    assert adopt(nets.heatmap_network(), HEATMAP).read_bytes() == first


def test_both_spellings_of_licence(adopt: Adopt, tmp_path: Path) -> None:
    adopt(nets.heatmap_network(), HEATMAP)
    words = ["adopt", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "b.onnx"), *HEATMAP]
    words += ["--skeleton", str(tmp_path / "three.json"), "--photos", str(tmp_path / "photos")]
    assert main([*words, "--licence", "Apache-2.0"]) == 0
    assert read_spec(load_model(tmp_path / "b.onnx")).license == "Apache-2.0"
    with pytest.raises(InputError, match="licence must be named"):
        main([*words, "--license", " "])
