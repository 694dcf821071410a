"""Adopted artifacts lowered, as engines and in OpenVINO, like cfpose's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from cfpose_export.cli import main
from cfpose_export.graph.rules import element_types, load_model, read_spec
from cfpose_export.precision.typed import lower, modules_of, plan, scope
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.media.image import read_image
from tests.export.adopt import networks as nets

OPEN = [*nets.NAMED, "--decode", "dark", "--geometry", "classic", "--blur", "3", "0.8"]


def adopted(folder: Path, network: onnx.ModelProto, *options: str) -> Path:
    skeleton = nets.write_skeleton(folder)
    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    nets.write_photos(photos)
    (folder / "net.onnx").write_bytes(network.SerializeToString())
    target = folder / "adopted.onnx"
    words = ["adopt", str(folder / "net.onnx"), "-o", str(target), "--license", "MIT", *OPEN]
    words += ["--skeleton", str(skeleton), "--photos", str(photos), *options]
    assert main(words) == 0
    return target


def adopted_by(folder: Path, network: onnx.ModelProto, options: list[str]) -> Path:
    """Adopted with a preset's own skeleton, on the photos of blobs."""
    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    nets.write_photos(photos)
    (folder / "net.onnx").write_bytes(network.SerializeToString())
    target = folder / "adopted.onnx"
    words = ["adopt", str(folder / "net.onnx"), "-o", str(target), "--license", "MIT", *options]
    assert main([*words, "--photos", str(photos), "--min-confidence", "0"]) == 0
    return target


def named_network(name: str) -> onnx.ModelProto:
    network = nets.heatmap_network()
    network.graph.node[0].name = name
    return network


def test_lowered_is_what_stands_before_the_last_weights(tmp_path: Path) -> None:
    model = load_model(adopted(tmp_path, nets.heatmap_network()))
    chosen = plan(model, "fp16")
    assert {model.graph.node[i].op_type for i in chosen.low} == {"Conv"}
    assert modules_of(model, chosen.low) == ("backbone.part0",)
    low = lower(model, "fp16")
    types = element_types(low)
    for node in low.graph.node:
        if scope(node).startswith(("decode", "normalise")) and node.op_type != "Cast":
            kinds = {types.get(name) for name in node.output}
            assert onnx.TensorProto.FLOAT16 not in kinds, node.name
    assert read_spec(low).precision == "fp16"
    assert read_spec(low).adopted == read_spec(model).adopted


def test_modules_keep_the_files_names(tmp_path: Path) -> None:
    model = load_model(adopted(tmp_path, named_network("/stage1/conv/Conv")))
    assert modules_of(model, plan(model, "fp16").low) == ("backbone.stage1.conv",)
    network = nets.heatmap_network()
    scopes = onnx.StringStringEntryProto(
        key="pkg.torch.onnx.name_scopes", value="['', 'stem', 'stem.first', 'conv']"
    )
    network.graph.node[0].metadata_props.append(scopes)
    model = load_model(adopted(tmp_path, network))
    assert modules_of(model, plan(model, "fp16").low) == ("backbone.stem.first",)


def test_lower_and_check_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the gate, whose proof looks at the photos of blobs."""
    path = adopted(tmp_path, nets.heatmap_network())
    half, photos = tmp_path / "half.onnx", str(tmp_path / "photos")
    words = ["lower", str(path), "--precision", "fp16", "-o", str(half), "--photos", photos]
    assert main([*words, "--min-confidence", "0.05", "--crops", "30"]) == 0
    capsys.readouterr()
    words = ["check", str(half), "--reference", str(path), "--photos", photos]
    assert main([*words, "--min-confidence", "0.05"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(half)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["metadata"]["cfpose.spec"]["adopted"]["calibrated"] is False
    assert said["nodes_by_type"]["float16"] >= 1


@pytest.mark.parametrize("batch", [0, 2])
def test_openvino_runs_it(tmp_path: Path, batch: int) -> None:
    pytest.importorskip("openvino")
    from cfpose_sdk.backends import open_backend

    network = nets.heatmap_network()
    if batch:  # an answer that depends on its place: the batch stays fixed
        network = nets.heatmap_network(batch=batch)
        gain = np.array([1.0, 0.5], np.float32).reshape(2, 1, 1, 1)
        network.graph.node[0].output[0] = "plain"
        network.graph.initializer.append(onnx.numpy_helper.from_array(gain, "gain"))
        network.graph.node.append(onnx.helper.make_node("Mul", ["plain", "gain"], ["heatmaps"]))
    path = adopted(tmp_path, network)
    crops = nets.blobs(3)
    with open_backend(path, device="cpu") as ours, open_backend(path, device="openvino") as other:
        one, two = ours.run({"crops": crops}), other.run({"crops": crops})
        nobody = other.run({"crops": crops[:0]})
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=2e-2, rtol=1e-3)
        assert nobody[name].shape == (0, *value.shape[1:])


def test_tensorrt_builds_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fixed batch sets the profile."""
    pytest.importorskip("tensorrt_rtx")
    for index, network in enumerate((nets.heatmap_network(), nets.heatmap_network(batch=2))):
        if index:
            gain = np.array([1.0, 0.5], np.float32).reshape(2, 1, 1, 1)
            network.graph.node[0].output[0] = "plain"
            network.graph.initializer.append(onnx.numpy_helper.from_array(gain, "gain"))
            make = onnx.helper.make_node
            network.graph.node.append(make("Mul", ["plain", "gain"], ["heatmaps"]))
        path = adopted(tmp_path, network)
        capsys.readouterr()
        words = ["engine", "--model", str(path), "-o", str(tmp_path / f"net{index}.engine")]
        assert main([*words, "--input", "crops", "--people", "1", "4", "8"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["built"]
        counts = [[side[0] for side in profile["crops"]] for profile in said["profiles"]]
        assert counts == ([[2, 2, 2]] if index else [[1, 1, 1], [1, 4, 4], [1, 8, 8]])


@pytest.mark.parametrize("network", [nets.heatmap_network(), nets.movenet_like(batch=2)])
def test_frame_of_an_adopted_artifact(
    tmp_path: Path, network: onnx.ModelProto, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sub-command, whose proof compares with the core on crops in float64."""
    options = ["--preset", "movenet", "--box-scale", "1.2"]
    heat = network.graph.output[0].name == "heatmaps"
    path = adopted(tmp_path, network) if heat else adopted_by(tmp_path, network, options)
    capsys.readouterr()
    words = ["frame", str(path), "-o", str(tmp_path / "frame.onnx"), "--min-confidence", "0.05"]
    assert main([*words, "--photos", str(tmp_path / "photos")]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof["joints"] > 5
    assert proof["max_crop_px"] <= 1e-3
    assert read_spec(load_model(tmp_path / "frame.onnx")).input == "frame"


@pytest.mark.parametrize(
    ("file", "preset"),
    [("tinypose_256x192_v1", "tinypose"), ("movenet_lightning", "movenet")],
)
def test_frames_of_the_real_networks(
    tmp_path: Path, shared_dir: Path, root: Path, file: str, preset: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Within the bound that the bundled model's frames keep to: 0.05 px of frame and crop."""
    source = shared_dir / "data" / "labellers" / f"{file}.onnx"
    photos = tmp_path / "photos"
    photos.mkdir()
    listing = json.loads((root / "examples/photos/people.json").read_text())
    name, boxes = next((name, boxes) for name, boxes in listing.items() if boxes)
    (photos / name).write_bytes((root / "examples/photos" / name).read_bytes())
    (photos / "people.json").write_text(json.dumps({name: boxes[:2]}))
    crops, frame = str(tmp_path / "crops.onnx"), str(tmp_path / "frame.onnx")
    words = ["adopt", str(source), "--preset", preset, "--license", "Apache-2.0", "-o", crops]
    assert main([*words, "--photos", str(photos)]) == 0
    capsys.readouterr()
    assert main(["frame", crops, "-o", frame, "--photos", str(photos)]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof["joints"] >= 30
    assert proof["bin_flips"] <= 1
    assert max(proof["max_crop_px"], proof["max_px"]) <= 0.05
    height, width = read_image(photos / name).shape[:2]
    with PoseEstimator(crops, device="cpu") as a, PoseEstimator(frame, device="cpu") as b:
        one, two = (e.predict(photos / name, boxes=boxes[:2]) for e in (a, b))
    step = 1.25 * max(width, height) / 192  # at most so many photo pixels a crop pixel
    sure = one.confidence >= 0.3
    apart = np.linalg.norm(one.xy - two.xy, axis=2)[sure] / step
    assert np.median(apart) <= 0.1
