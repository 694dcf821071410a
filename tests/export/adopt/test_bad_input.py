"""What is no pose network, or not the one that was named, is refused with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from cfpose_export.cli import main
from cfpose_sdk.errors import ArtifactError, InputError
from tests.export.adopt import networks as nets

OPEN = [*nets.NAMED, "--decode", "argmax", "--geometry", "classic"]


def refused(folder: Path, network: onnx.ModelProto | bytes, options: Sequence[str]) -> Path:
    """Try to adopt; the file must not be there afterwards."""
    data = network if isinstance(network, bytes) else network.SerializeToString()
    (folder / "net.onnx").write_bytes(data)
    target = folder / "out.onnx"
    words = ["adopt", str(folder / "net.onnx"), "-o", str(target), "--license", "MIT", *options]
    try:
        main(words)
    finally:
        assert not target.exists()
    return target


def answering(**outputs: Sequence[int]) -> onnx.ModelProto:
    """A network of 192 x 256 whose outputs are constants of these shapes."""
    nodes, constants = [], {"zero": np.zeros((), np.float32)}
    nodes.append(helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0))
    nodes.append(helper.make_node("Mul", ["mean", "zero"], ["nothing"]))
    for name, shape in outputs.items():
        constants[f"{name}_value"] = np.random.default_rng(0).random(shape).astype(np.float32)
        nodes.append(helper.make_node("Add", [f"{name}_value", "nothing"], [name]))
    return nets.model_of(nodes, outputs, constants, entry=(1, 3, 256, 192))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (answering(probabilities=(1, 1000)), "as a classifier does"),
        (answering(output=(1, 3549, 85)), "as a detector does; give it as detector="),
        (answering(dets=(1, 100, 5), labels=(1, 100)), "as a detector does"),
        (answering(output0=(1, 56, 1344)), "yolopose:"),
        (answering(depth=(1, 1, 256, 256)), r"expected heatmaps \[N, K, h, w\]"),
        (answering(a=(1, 17, 64, 48), b=(1, 17, 64, 48)), r"\['a', 'b'\]; choose with --network-o"),
    ],
)
def test_other_networks(tmp_path: Path, network: onnx.ModelProto, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        refused(tmp_path, network, OPEN)


@pytest.mark.parametrize("file", ["rtmdet_nano_person_320", "yolox_nano"])
def test_real_detectors_are_told(tmp_path: Path, shared_dir: Path, file: str) -> None:
    source = shared_dir / "data" / "labellers" / f"{file}.onnx"
    size = ["--size", "416", "416"] if file == "yolox_nano" else []
    with pytest.raises(ArtifactError, match="as a detector does"):
        refused(tmp_path, source.read_bytes(), [*OPEN, *size])


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("tinypose", r"coordinates; take one of --preset movenet"),
        ("simcc-hrnet", r"coordinates; take one of --preset movenet"),
    ],
)
def test_another_familys_preset(tmp_path: Path, preset: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        refused(tmp_path, nets.movenet_like(batch=4), ["--preset", preset])


def test_one_of_two_outputs_is_chosen(tmp_path: Path) -> None:
    network = answering(a=(1, 17, 64, 48), b=(1, 17, 32, 24))
    (tmp_path / "net.onnx").write_bytes(network.SerializeToString())
    words = ["adopt", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "out.onnx")]
    words += ["--license", "MIT", "--preset", "tinypose", "--network-output", "b"]
    assert main(words) == 0
    with pytest.raises(InputError, match=r"has no output \['c'\]"):
        main([*words, "--network-output", "c"])


def test_an_output_of_other_channels_is_no_doubt(tmp_path: Path) -> None:
    """A feature map beside the heatmaps: 64 channels are nobody's joints."""
    network = answering(features=(1, 64, 64, 48), maps=(1, 17, 64, 48))
    (tmp_path / "net.onnx").write_bytes(network.SerializeToString())
    words = ["adopt", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "out.onnx")]
    assert main([*words, "--license", "MIT", "--preset", "hrnet"]) == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            ["--preset", "tinypose", "--skeleton", "halpe26"],
            InputError,
            "26 joints, the network 17",
        ),
        (["--preset", "rtmpose"], InputError, r"take one of --preset vitpose\|hrnet\|tinypose"),
        (["--preset", "movenet"], InputError, r"take one of --preset vitpose\|hrnet\|tinypose"),
        (["--skeleton", "coco17"], InputError, "--colour rgb.*--box-scale S, --geometry"),
        (["--preset", "tinypose", "--decode", "subbin"], InputError, "is not for a heatmap"),
        (["--preset", "tinypose", "--blur", "4", "1"], InputError, "kernel must be odd"),
        (["--preset", "tinypose", "--blur", "x", "1"], InputError, "whole number"),
        (["--preset", "tinypose", "--skeleton", "none.json"], InputError, "no such file"),
        (["--preset", "tinypose", "--size", "64", "64"], InputError, "takes 192 x 256"),
        (["--preset", "tinypose", "--antialias", "2"], InputError, "--input frame"),
    ],
)
def test_what_contradicts_the_file(
    tmp_path: Path, options: Sequence[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        refused(tmp_path, answering(maps=(1, 17, 64, 48)), options)


def test_fourteen_joints_need_their_names(tmp_path: Path) -> None:
    network = answering(maps=(1, 14, 64, 48))
    with pytest.raises(InputError, match=r"has 14 joints.*name them with --skeleton"):
        refused(tmp_path, network, ["--preset", "hrnet"])
    (tmp_path / "out.onnx").unlink(missing_ok=True)
    words = ["adopt", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "out.onnx")]
    words += ["--license", "MIT", "--preset", "hrnet", "--skeleton", "crowdpose14"]
    assert main(words) == 0


def test_truncated_and_empty_files(tmp_path: Path) -> None:
    whole = nets.heatmap_network().SerializeToString()
    for data in (whole[: len(whole) // 2], b"", b"no graph"):
        with pytest.raises(ArtifactError, match=r"net.onnx"):
            refused(tmp_path, data, OPEN)
    with pytest.raises(ArtifactError, match="cannot read"):
        main(["adopt", str(tmp_path / "no.onnx"), "-o", "x.onnx", "--license", "MIT", *OPEN])


def test_missing_external_weights(tmp_path: Path) -> None:
    network = nets.heatmap_network()
    path = tmp_path / "apart.onnx"
    onnx.save_model(
        network, path, save_as_external_data=True, location="gone.data", size_threshold=0
    )
    (tmp_path / "gone.data").unlink()
    with pytest.raises(ArtifactError, match=r"weights in a file beside it"):
        main(["adopt", str(path), "-o", str(tmp_path / "x.onnx"), "--license", "MIT", *OPEN])


def test_operators_of_one_runtime(tmp_path: Path) -> None:
    network = nets.heatmap_network()
    network.graph.node.append(
        helper.make_node("FusedConv", ["image", "pool"], ["other"], domain="com.microsoft")
    )
    network.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(ArtifactError, match=r"com.microsoft.FusedConv.*QuantizeLinear"):
        refused(tmp_path, network, OPEN)


def test_a_decoder_inside(tmp_path: Path) -> None:
    network = nets.heatmap_network()
    network.graph.node.append(helper.make_node("NonZero", ["heatmaps"], ["places"]))
    with pytest.raises(ArtifactError, match=r"NonZero.*raw outputs"):
        refused(tmp_path, network, OPEN)


def test_an_open_size_and_two_inputs(tmp_path: Path) -> None:
    network = nets.heatmap_network()
    for dim in network.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "side"
    with pytest.raises(InputError, match="--size WIDTH HEIGHT"):
        refused(tmp_path, network, OPEN)
    network = nets.heatmap_network()
    network.graph.input.append(helper.make_tensor_value_info("mask", 1, [1]))
    with pytest.raises(ArtifactError, match=r"\['image', 'mask'\]; expected one image"):
        refused(tmp_path, network, OPEN)


def test_an_artifact_is_not_adopted_again(tmp_path: Path) -> None:
    from cfpose_sdk.estimator import BUNDLED_MODEL

    with pytest.raises(ArtifactError, match="artifact already"):
        refused(tmp_path, BUNDLED_MODEL.read_bytes(), OPEN)


def test_an_untrained_network_proves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = nets.heatmap_network()
    weights = onnx.numpy_helper.from_array(nets.POOL["pool"] * 1e-3, "pool")
    network.graph.initializer[0].CopyFrom(weights)
    skeleton = ["--skeleton", str(nets.write_skeleton(tmp_path)), "--min-confidence", "0.3"]
    (tmp_path / "net.onnx").write_bytes(network.SerializeToString())
    target = tmp_path / "out.onnx"
    words = ["adopt", str(tmp_path / "net.onnx"), "-o", str(target), "--license", "MIT"]
    assert main([*words, *OPEN, *skeleton]) == 1
    assert "--check PHOTOS.json" in capsys.readouterr().err
    assert not target.exists()


def test_licence_and_a_goal_are_needed(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(nets.heatmap_network().SerializeToString())
    with pytest.raises(SystemExit, match="2"):
        main(["adopt", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "x.onnx"), *OPEN])
    with pytest.raises(InputError, match=r"-o FILE.onnx"):
        main(["adopt", str(tmp_path / "net.onnx"), "--license", "MIT", *OPEN])
