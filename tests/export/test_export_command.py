"""cfpose-export, from checkpoints to files and exit codes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cfpose_export.artifacts import bundle
from cfpose_export.cli import main
from cfpose_export.graph.frame_input import frame_graph
from cfpose_export.graph.rules import read_spec, write_spec
from cfpose_export.proof import checkpoint
from cfpose_sdk.detectors.base import PersonFinder
from cfpose_sdk.errors import ArtifactError, ExportError, InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.media.image import read_image
from cfpose_sdk.spec import FINDER_KEY, SPEC_KEY, FinderSpec
from cfpose_training.checkpoints.files import save_finder, save_pose
from cfpose_training.nets.finder import FinderNet, FinderNetConfig
from cfpose_training.nets.fused import FusedPose
from cfpose_training.nets.pose_net import RefinedPoseNet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, fused: FusedPose) -> Path:
    """A pose and a finder checkpoint."""
    folder: Path = tmp_path_factory.mktemp("checkpoints")
    assert fused.refiner is not None
    network = RefinedPoseNet(fused.pose, fused.refiner, fused.spec)
    save_pose(folder / "pose.safetensors", network, fused.spec)
    torch.manual_seed(0)
    config = FinderNetConfig(
        channels=(8, 8, 8, 8, 8), blocks=(1, 1, 1, 1, 1), head_channels=8, box_grid=3
    )
    spec = FinderSpec("tiny", (192, 128), threshold=0.0, nms_iou=0.5)
    finder = FinderNet(config)
    assert finder.box_refiner is not None
    torch.nn.init.normal_(finder.box_refiner.sides.weight, std=0.1)  # else it corrects nothing
    save_finder(folder / "finder.safetensors", finder, spec)
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    """The pose graph, written by the command."""
    path = folder / "pose.onnx"
    assert main(["onnx", "--checkpoint", str(folder / "pose.safetensors"), "-o", str(path)]) == 0
    return path


def test_the_sdk_runs_what_the_command_wrote(exported: Path, root: Path) -> None:
    with PoseEstimator(exported, device="cpu") as pose:
        assert pose.spec.gate["max_px"] <= 0.05
        people = pose.predict(
            root / "examples" / "photos" / "street.jpg", boxes=[[152, 330, 200, 451]]
        )
        nobody = pose.predict(root / "examples" / "photos" / "street.jpg", boxes=[])
    assert people.xy.shape == (1, 17, 2)
    assert len(nobody) == 0


def test_check_passes_and_reports(
    exported: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(exported), "--checkpoint", str(folder / "pose.safetensors")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["max_px"] <= 0.05
    assert report["crops"] == 42


def test_check_fails_on_a_changed_graph(
    exported: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load_model(exported)
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    array = numpy_helper.to_array(tensor) * 1.05
    tensor.CopyFrom(numpy_helper.from_array(array.astype("float32"), tensor.name))
    changed = tmp_path / "changed.onnx"
    onnx.save_model(model, changed)
    assert main(["check", str(changed), "--checkpoint", str(folder / "pose.safetensors")]) == 1
    assert "the graph is not the model" in capsys.readouterr().err


def test_an_impossible_bound_fails_and_writes_nothing(
    folder: Path,
    model: onnx.ModelProto,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "cfpose_export.proof.checkpoint.build_pose", lambda _: model
    )  # tracing takes long
    target = tmp_path / "out" / "pose.onnx"
    checkpoint = str(folder / "pose.safetensors")
    code = main(["onnx", "--checkpoint", checkpoint, "-o", str(target), "--max-drift", "0"])
    assert code == 1
    assert "allowed 0" in capsys.readouterr().err
    assert not target.parent.exists()


def test_inspect(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(exported)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["inputs"] == {"crops": "uint8 [N, 96, 64, 3]"}
    assert report["outputs"]["keypoints"] == "float32 [N, 17, 2]"
    assert report["opset"] == {"ai.onnx": 18}
    assert report["operators"]["GridSample"] == 3
    assert report["metadata"]["cfpose.spec"]["name"] == "tiny"
    assert report["bytes"] == exported.stat().st_size


def test_finder_goes_through_too(
    folder: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, checkpoint = tmp_path / "finder.onnx", str(folder / "finder.safetensors")
    assert main(["onnx", "--checkpoint", checkpoint, "-o", str(target)]) == 0
    assert json.loads(capsys.readouterr().out)["max_px"] <= 0.05
    with PersonFinder(target, device="cpu") as finder:
        assert len(finder(read_image(root / "examples" / "photos" / "street.jpg"))) > 0
    with pytest.raises(InputError, match=r"--decode, .* are for pose models"):
        main(["onnx", "--checkpoint", checkpoint, "-o", str(target), "--decode", "argmax"])
    for words in (
        ["--max-drift", "1"],
        ["--min-confidence", "0"],
        ["--antialias", "2"],
        ["--joint-lookup", "gather"],
    ):
        with pytest.raises(InputError, match=rf"{words[0]}.* for pose models"):
            main(["onnx", "--checkpoint", checkpoint, "-o", str(target), *words])

    capsys.readouterr()
    right = onnx.load_model(target)
    assert main(["check", str(target), "--checkpoint", checkpoint]) == 0
    other = FinderSpec("tiny", (192, 128), threshold=0.9, nms_iou=0.5)
    for metadata, said in (({FINDER_KEY: other.to_json()}, "different specs"), ({}, "carries no")):
        onnx.helper.set_model_props(right, metadata)
        onnx.save_model(right, tmp_path / "other.onnx")
        assert main(["check", str(tmp_path / "other.onnx"), "--checkpoint", checkpoint]) == 1
        assert said in capsys.readouterr().err

    model = onnx.load_model(target)
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    array = numpy_helper.to_array(tensor) * 1.05
    tensor.CopyFrom(numpy_helper.from_array(array.astype("float32"), tensor.name))
    onnx.save_model(model, target)
    assert main(["check", str(target), "--checkpoint", checkpoint]) == 1

    bundled = bundle([], target, tmp_path / "models")
    assert [p.name for p in bundled] == ["finder-s.onnx"]
    with pytest.raises(ArtifactError, match=r"carries no cfpose\.finder"):
        bundle([], folder / "pose.onnx", tmp_path / "models")


def test_bundle_takes_proven_graphs_only(
    exported: Path, model: onnx.ModelProto, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    assert main(["bundle", "--pose", str(exported), "--folder", str(models)]) == 0
    assert (models / "cfpose-s.onnx").read_bytes() == exported.read_bytes()
    unproven = tmp_path / "unproven.onnx"
    onnx.save_model(model, unproven)
    with pytest.raises(ExportError, match="carries no proof"):
        bundle([unproven], None, models)
    with pytest.raises(ExportError, match=r"two pose models are for cfpose-s\.onnx"):
        bundle([exported, exported], None, models)
    other = onnx.load_model(exported)
    write_spec(other, dataclasses.replace(read_spec(other), name="cfpose-m"))
    onnx.save_model(other, tmp_path / "other.onnx")
    written = bundle([tmp_path / "other.onnx", exported], None, models)
    assert [path.name for path in written] == ["cfpose-m.onnx", "cfpose-s.onnx"]
    (models / "large.onnx").write_bytes(bytes(40_000_000))
    with pytest.raises(ExportError, match="allowed are 40000000"):
        bundle([exported], None, models)


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    with pytest.raises(ArtifactError, match="is not an ONNX file"):
        main(["inspect", str(broken)])
    with pytest.raises(ArtifactError, match="cannot read"):
        main(["inspect", str(tmp_path / "missing.onnx")])
    with pytest.raises(ArtifactError, match=r"cannot read the checkpoint.*cfpose-train convert"):
        main(["onnx", "--checkpoint", str(broken), "-o", str(tmp_path / "y.onnx")])


@pytest.mark.parametrize("every", ["0", "-1", "x", "1.5"])
def test_drift_takes_every_nth_photo(every: str) -> None:
    with pytest.raises(InputError, match="EVERY is a whole number from 1 on"):
        main(["drift", "default", "--ap", "people.json", "images", every])


def test_an_engine_of_frames_is_lowered_before(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save_model(frame_graph(model), tmp_path / "frame.onnx")
    line = ["engine", str(tmp_path / "frame.onnx"), "-o", str(tmp_path / "x.engine")]
    with pytest.raises(InputError, match="an engine takes frames all the same"):
        main([*line, "--precision", "fp16"])


def test_another_decoder_drops_the_window(fused: FusedPose, tmp_path: Path) -> None:
    assert fused.refiner is not None
    spec = dataclasses.replace(fused.spec, oks_window=1.5)
    checkpoint, graph = tmp_path / "wide.safetensors", tmp_path / "wide.onnx"
    save_pose(checkpoint, RefinedPoseNet(fused.pose, fused.refiner, spec), spec)
    arguments = ["onnx", "--checkpoint", str(checkpoint), "-o", str(graph), "--decode", "argmax"]
    assert main([*arguments, "--min-confidence", "0"]) == 0
    written = read_spec(onnx.load_model(graph))
    assert (written.decode, written.oks_window) == ("argmax", 0.0)
    assert (
        main(["check", str(graph), "--checkpoint", str(checkpoint), "--min-confidence", "0"]) == 0
    )


@pytest.mark.parametrize("calibration", [(1.0, 0.0), (1.2, -0.3)])
def test_a_graph_that_nobody_calibrated_says_so(
    folder: Path, tmp_path: Path, fused: FusedPose, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], calibration: tuple[float, float],
) -> None:  # fmt: skip
    spec = dataclasses.replace(fused.spec, calibration=calibration, covariance_scale=1.0)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N"]) for n in "xy")
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), ir_version=10)
    helper.set_model_props(model, {SPEC_KEY: spec.to_json()})
    onnx.save_model(model, tmp_path / "x.onnx")
    monkeypatch.setattr(checkpoint, "export_checkpoint", lambda *_, **__: iter(()))
    given = ["--checkpoint", str(folder / "pose.safetensors"), "-o", str(tmp_path / "x.onnx")]
    assert main(["onnx", *given]) == 0
    assert ("x.onnx is uncalibrated" in capsys.readouterr().err) == (calibration == (1.0, 0.0))
