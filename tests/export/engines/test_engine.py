"""Engines on disk: built once, one valid pair whatever happens, and commands without PyTorch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cfpose_export.cli import _parser, main
from cfpose_export.engines.build import Source, _command, write_engine
from cfpose_export.engines.options import BuildOptions
from cfpose_export.engines.tensorrt import Built
from cfpose_export.proof.compare import Bound
from cfpose_sdk.backends.tensorrt.cuda import Gpu
from cfpose_sdk.backends.tensorrt.passport import (
    Companion,
    passport_path,
    read_engine,
    read_passport,
    rebuild_command,
)
from cfpose_sdk.errors import ArtifactError, BackendError, InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import sha256
from tests.sdk import tiny_models

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")

PROFILE = {"x": ((1, 4), (8, 4), (32, 4))}
SOURCE = Source("tiny.onnx", "0" * 64)


def _graph(weight: float = 1.0) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"], name="m")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.full(4, weight, np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


class Counting:
    """A builder whose engines differ from call to call."""

    calls = 0

    def __call__(
        self, model: onnx.ModelProto, flavour: str, options: BuildOptions, report: Any
    ) -> Built:
        self.calls += 1
        self.options = options
        return Built(b"engine %d" % self.calls, {"x": ""}, {"y": ""}, (PROFILE,), {})


def test_nothing_is_built_twice(tmp_path: Path) -> None:
    path, builder = tmp_path / "new" / "tiny.engine", Counting()
    options = BuildOptions()
    first, new = write_engine(path, _graph(), SOURCE, options, builder=builder)
    assert (new, builder.calls) == (True, 1)
    assert read_engine(path) == (b"engine 1", first)
    again = write_engine(path, _graph(), SOURCE, options, builder=builder)
    assert again == (first, False)
    assert write_engine(path, _graph(), SOURCE, options, force=True, builder=builder)[1]
    assert builder.calls == 2
    changes = [
        (_graph(2.0), options),
        (_graph(), dataclasses.replace(options, people=(1, 4, 32))),
        (_graph(), dataclasses.replace(options, frames=((64, 64),))),
        (_graph(), dataclasses.replace(options, workspace_mib=64)),
        (_graph(), dataclasses.replace(options, targets=("8.9",))),
        (_graph(), dataclasses.replace(options, tf32=True)),
        (_graph(), dataclasses.replace(options, level=2)),
    ]
    keys = {first.key}
    for model, other in changes:
        passport, new = write_engine(path, model, SOURCE, other, builder=builder)
        assert new
        keys.add(passport.key)
    assert len(keys) == 1 + len(changes)


@pytest.mark.parametrize(("field", "value"), [("__version__", "9.9"), ("cuda", 99)])
def test_another_toolchain_builds_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, value: object
) -> None:
    import tensorrt_rtx

    path, builder = tmp_path / "tiny.engine", Counting()
    write_engine(path, _graph(), SOURCE, BuildOptions(), builder=builder)
    if field == "cuda":
        monkeypatch.setattr("cfpose_export.engines.build.cuda_major", lambda *_: value)
    else:
        monkeypatch.setattr(tensorrt_rtx, field, value)
    assert write_engine(path, _graph(), SOURCE, BuildOptions(), builder=builder)[1]


def test_a_damaged_pair_is_built_again(tmp_path: Path) -> None:
    path, builder = tmp_path / "tiny.engine", Counting()
    write_engine(path, _graph(), SOURCE, BuildOptions(), builder=builder)
    for damage in (
        lambda: path.write_bytes(b"engine 0"),
        lambda: path.unlink(),
        lambda: passport_path(path).write_text("{"),
        lambda: passport_path(path).unlink(),
    ):
        damage()
        assert write_engine(path, _graph(), SOURCE, BuildOptions(), builder=builder)[1]
        assert read_engine(path)[0] == b"engine %d" % builder.calls


def test_the_command_rebuilds_it(tmp_path: Path) -> None:
    options = BuildOptions(
        people=(1, 4), frames=((640, 480),), targets=("8.9", "12.0"), tf32=True, level=3,
        workspace_mib=512,
    )  # fmt: skip
    source = Source("a b.onnx", "", ("--precision", "fp16"))
    path = tmp_path / "tiny.plan"
    passport, _ = write_engine(path, _graph(), source, options, builder=Counting())
    assert rebuild_command(path, passport) == (
        "cfpose-export engine --model 'a b.onnx' --precision fp16 --flavour rtx --people 1 4 "
        f"--frames 640x480 --targets 8.9 12.0 --workspace 512 --tf32 --level 3 -o {path}"
    )
    words = [*passport.command[1:], "-o", str(path)]
    parsed = _parser().parse_args(words)
    assert (parsed.people, parsed.targets, parsed.tf32) == ([1, 4], ["8.9", "12.0"], True)
    assert (parsed.frames, parsed.workspace) == (["640x480"], 512)
    compatible = BuildOptions(flavour="tensorrt", compatible="same-sm")
    assert "--compatible same-sm" in " ".join(_command(source, "tensorrt", compatible))
    with pytest.raises(InputError, match=r"must end in \.engine or \.plan"):
        write_engine(tmp_path / "x.onnx", _graph(), SOURCE, BuildOptions())


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import onnx
from cfpose_export.engines import build
from cfpose_export.engines.options import BuildOptions, frame_size
from cfpose_export.engines.tensorrt import Built
path, graph, death, force = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "force"
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def builder(model, flavour, options, report):
    with open(path.with_suffix(".log"), "a") as log:
        log.write("built\\n")
    if death == "build":
        die()
    time.sleep(0.2)
    data = (b"%d " % os.getpid()) * 200_000
    return Built(data, {"x": ""}, {"y": ""}, ({"x": ((1, 4), (8, 4), (32, 4))},), {})
replace, calls = os.replace, [0]
def deadly(source, target):
    calls[0] += 1
    if death == f"before {calls[0]}":
        die()
    replace(source, target)
    if death == f"after {calls[0]}":
        die()
os.replace = deadly
print("ready", flush=True)
sys.stdin.readline()
source = build.Source("tiny.onnx", "0" * 64)
build.write_engine(path, onnx.load(graph), source, BuildOptions(), force=force, builder=builder)
"""


def _start(path: Path, graph: Path, death: str, force: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path), str(graph), death, force],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _go(*processes: subprocess.Popen[str]) -> list[int]:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    return [process.returncode for process in processes]


@pytest.mark.parametrize(("force", "builds"), [("", 1), ("force", 2)])
def test_two_processes_leave_one_valid_pair(tmp_path: Path, force: str, builds: int) -> None:
    path, graph = tmp_path / "tiny.engine", tmp_path / "graph.onnx"
    onnx.save(_graph(), graph)
    both = [_start(path, graph, "", force) for _ in range(2)]
    assert _go(*both) == [0, 0]
    data, passport = read_engine(path)
    assert passport.engine_sha256 == sha256(data)
    assert len(set(data.split())) == 1  # of one process
    assert path.with_suffix(".log").read_text().count("built") == builds


@pytest.mark.parametrize("death", ["build", "before 1", "after 1", "after 2"])
def test_a_kill_leaves_nothing_half_written(tmp_path: Path, death: str) -> None:
    path, graph = tmp_path / "tiny.engine", tmp_path / "graph.onnx"
    onnx.save(_graph(2.0), graph)
    old, _ = write_engine(path, _graph(), SOURCE, BuildOptions(), builder=Counting())
    assert _go(_start(path, graph, death, "")) == [-9]
    if death == "after 1":  # a new engine beside the old passport: whole, but no pair
        with pytest.raises(ArtifactError, match="built by another run"):
            read_engine(path)
    else:
        data, passport = read_engine(path)
        assert (passport == old) == (death != "after 2")
        assert passport.engine_bytes == len(data)
    builder = Counting()  # the lock of the dead one is free
    write_engine(path, _graph(2.0), SOURCE, BuildOptions(), builder=builder)
    assert read_engine(path)[1].key != old.key
    assert builder.calls == (0 if death == "after 2" else 1)


WITHOUT_TORCH = """
import json, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnxscript", "lightning_fabric"):
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, NoTorch())
import cfpose_export
from cfpose_sdk import commands
for line in json.loads(sys.argv[1]):
    sys.argv = line
    code = commands.export()
    print(f"exit {code}", flush=True)
"""


def test_graphs_and_engines_need_no_torch(tmp_path: Path, root: Path) -> None:
    """The way of the README, with the bundled model, up to where a driver is needed."""
    model = str(root / "cfpose_sdk" / "models" / "cfpose-s.onnx")
    engine, xml = str(tmp_path / "cfpose.engine"), str(tmp_path / "cfpose.xml")
    short = ["--targets", "8.9", "--level", "0", "--people", "1", "--frames", "640x480"]
    make = ["cfpose-export", "engine", "--model", "default", "-o", engine, *short]
    check = ["cfpose-export", "check"]
    lines = [
        make,
        make,
        ["cfpose-export", "openvino", model, "-o", xml],
        [*check, engine],
        ["cfpose-export", "inspect", model],
        ["cfpose-export", "inspect", engine],
        ["cfpose-export", "inspect", xml],
        ["cfpose-export", "onnx", "--checkpoint", "x.safetensors", "-o", "y.onnx"],
        [*check, model, "--checkpoint", "x.safetensors"],
        [*check, xml, "--max-drift", "0"],
    ]
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(lines)],
        capture_output=True, text=True, check=False, timeout=300, cwd=root,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    codes = [int(line[5:]) for line in run.stdout.splitlines() if line.startswith("exit ")]
    assert codes == [0] * 7 + [2, 2, 1], run.stderr
    assert run.stderr.count("cfpose-sdk[export]") == 2
    assert "allowed 0" in run.stderr
    reports = _reports(run.stdout)
    assert [report["built"] for report in reports[:2]] == [True, False]
    assert reports[2]["candidate"] == "OpenVINO CPU f32"
    assert reports[2]["max_px"] <= 1e-2
    assert reports[2]["joints"] > 100
    assert reports[3]["passport"] == "right"
    assert reports[4]["nodes_by_type"]["float32"] > 100
    assert set(reports[4]["nodes_by_scope"]) >= {"normalise", "pose.backbone", "pose.head"}
    assert reports[5]["metadata"]["cfpose.spec"]["name"] == reports[6]["spec"]["name"]
    assert set(reports[5]["achieved"]["pose.backbone"]) == {"float32"}
    _refuses(tmp_path / "cfpose.engine")
    finder = read_passport(tmp_path / "cfpose.finder.engine")
    pose = read_passport(tmp_path / "cfpose.engine")
    assert pose.companion == Companion("finder", "cfpose.finder.engine", finder.key)
    assert finder.companion == Companion("pose", "cfpose.engine", pose.key)
    assert (list(pose.inputs), list(finder.inputs)) == (["frame", "boxes"], ["frame"])


def _reports(text: str) -> list[dict[str, object]]:
    """The JSON objects of an output, in order."""
    found, rest, decoder = [], text, json.JSONDecoder()
    while "{" in rest:
        value, end = decoder.raw_decode(rest, start := rest.index("{"))
        assert end > start
        found.append(value)
        rest = rest[end:]
    return found


def _refuses(engine: Path) -> None:
    """Without a driver the SDK says so; with one it opens the engine or names what differs."""
    from cuda.bindings import runtime

    if int(runtime.cudaGetDeviceCount()[0]) != 0:
        with pytest.raises(BackendError, match="this machine has no NVIDIA driver"):
            PoseEstimator(engine)


def test_tensorrt_engines_are_of_the_gpu_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = SimpleNamespace(__version__="11.4.1")
    monkeypatch.setattr("cfpose_export.engines.build.open_flavour", lambda flavour, why: trt)
    here = [Gpu("NVIDIA L4", "8.9", 0)]
    memory = SimpleNamespace(gpu=lambda: here[0])
    monkeypatch.setattr("cfpose_export.engines.build.open_memory", lambda cuda, **_: memory)
    monkeypatch.setattr("cfpose_export.engines.build.cuda_major", lambda *_: 13)
    options, builder = BuildOptions(flavour="tensorrt"), Counting()
    path = tmp_path / "tiny.engine"
    passport, _ = write_engine(path, _graph(), SOURCE, options, builder=builder)
    assert (passport.flavour, passport.flavour_version) == ("tensorrt", "11.4.1")
    assert (passport.gpu, passport.sm, passport.cuda_major) == ("NVIDIA L4", "8.9", 13)
    # what is measured once is kept beside the engine, for this version and GPU alone
    assert builder.options.timing_cache == tmp_path / "tensorrt-11.4.1-nvidia-l4.timing"
    for other in (Gpu("NVIDIA L40", "8.9", 0), Gpu("NVIDIA L4", "9.0", 0)):
        here[0] = other
        assert write_engine(path, _graph(), SOURCE, options, builder=builder)[1]


def test_a_graph_is_checked_against_its_reference(
    tmp_path: Path,
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tiny_models.save_pose_model(tmp_path / "brightest.onnx")
    moved = tiny_models.save_pose_model(tmp_path / "moved.onnx", scale=1.01)
    with pytest.raises(InputError, match="the bundled models are cfpose-s"):
        main(["check", str(path)])
    assert main(["check", str(path), "--reference", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["max_px"] == 0
    assert main(["check", str(moved), "--reference", str(path)]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["max_px"] > 0.05
    assert "keypoints differ by" in said.err
    low = dataclasses.replace(tiny_models.SPEC, precision="fp16")
    half = tiny_models.save_pose_model(tmp_path / "half.onnx", spec=low)
    with pytest.raises(InputError, match="the reference must be float32"):
        main(["check", str(path), "--reference", str(half)])
    # nothing is written that is not proven
    target = tmp_path / "out" / "x.xml"
    with monkeypatch.context() as patch:
        patch.setattr("cfpose_export.deploy_commands.Bound", lambda px: Bound(px=-1.0))
        assert main(["openvino", str(path), "-o", str(target)]) == 1
    assert not target.parent.exists()
    assert main(["openvino", str(path), "-o", str(target)]) == 0
    assert {p.name for p in target.parent.glob("x*")} == {"x.xml", "x.bin", "x.xml.json"}
    with PoseEstimator(target) as estimator:
        assert estimator.spec == tiny_models.SPEC


def test_wrong_use_of_engine(tmp_path: Path) -> None:
    line = ["engine", "default", "-o", str(tmp_path / "x.engine")]
    for words, said in (
        (["--model", "default"], "two models are given"),
        (["--keep", "refiner"], "give --precision fp16 or bf16"),
        (["--precision", "fp32", "--keep", "refiner"], "give --precision fp16 or bf16"),
        (["--people", "8", "4", "2"], "people must be rising numbers"),
        (["--frames", "1920"], "WIDTHxHEIGHT"),
        (["--frames", "640x480", "64x64"], "whose longer sides rise"),
    ):
        with pytest.raises(InputError, match=said):
            main([*line, *words])
    assert list(tmp_path.iterdir()) == []


def test_the_photos_stand_in_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Source] = []

    def noted(output: Path, model: onnx.ModelProto, source: Source, *_: Any, **__: Any) -> Any:
        seen.append(source)
        raise InputError("enough")

    monkeypatch.setattr("cfpose_export.engine_command.write_engine", noted)
    line = ["engine", "default", "-o", str(tmp_path / "x.engine"), "--photos", "my photos"]
    with pytest.raises(InputError, match="enough"):
        main(line)
    assert seen[0].words == ("--photos", "my photos")
