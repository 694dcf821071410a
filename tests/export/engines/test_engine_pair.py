"""A pose engine and its finder are built together, and proven where they can be run."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from cfpose_export import engine_command
from cfpose_export.cli import main
from cfpose_export.engine_command import Making, build_pair
from cfpose_export.engines.build import Source, write_engine
from cfpose_export.engines.options import BuildOptions
from cfpose_export.engines.tensorrt import Built
from cfpose_export.graph.frame_finder import frame_finder
from cfpose_export.graph.frame_input import frame_graph
from cfpose_export.graph.rules import read_finder_spec, write_spec
from cfpose_sdk.backends import open_backend
from cfpose_sdk.backends.tensorrt.passport import Companion, passport_path, read_engine
from cfpose_sdk.errors import ExportError, InputError
from tests.sdk import tiny_models

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
OPTIONS = BuildOptions(people=(1,), frames=((64, 64),))


@pytest.fixture
def pose(tmp_path: Path) -> Path:
    path: Path = tiny_models.save_pose_model(tmp_path / "pose.onnx")
    return path


@pytest.fixture
def finder(tmp_path: Path) -> Path:
    """Two people wherever one looks; its letterbox is read, as frames ask."""
    boxes = [[4, 4, 20, 60], [30, 10, 50, 40]]
    path: Path = tiny_models.save_finder(tmp_path / "finder.onnx", boxes, [0.9, 0.8])
    model = onnx.load(str(path))
    reading = onnx.helper.make_node("Cast", ["images"], ["unused"], to=onnx.TensorProto.FLOAT)
    model.graph.node[2].CopyFrom(reading)
    onnx.save(model, str(path))
    return path


def _builder(model: onnx.ModelProto, flavour: str, options: BuildOptions, report: Any) -> Built:
    """The graph's own bytes in the place of an engine's."""
    ends = [{v.name: "" for v in values} for values in (model.graph.input, model.graph.output)]
    profile = dict.fromkeys(ends[0], ((1,), (1,), (1,)))
    return Built(model.SerializeToString(), ends[0], ends[1], (profile,), {})


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is really built."""
    quick = functools.partial(write_engine, builder=_builder)
    monkeypatch.setattr(engine_command, "write_engine", quick)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, built: None) -> dict[str, Any]:
    """Engines run here, as the graphs that they are. `swap`: what is run in their place."""
    swap: dict[str, Any] = {}

    def opened(path: Path) -> Any:
        graph = path.with_suffix(".onnx")
        graph.write_bytes(path.read_bytes())
        return open_backend(swap.get(path.name, graph), device="cpu")

    monkeypatch.setattr(engine_command, "open_backend", opened)
    monkeypatch.setattr(engine_command, "why_not_here", lambda path: None)
    return swap


@pytest.mark.usefixtures("built")
def test_a_pair_is_written_into_a_new_folder(tmp_path: Path, pose: Path, finder: Path) -> None:
    path = tmp_path / "new" / "folder" / "tiny.engine"
    report = build_pair(str(pose), path, OPTIONS, Making(), finder=str(finder))
    _, own = read_engine(path)
    _, along = read_engine(path.with_name("tiny.finder.engine"))
    assert own.companion == Companion("finder", "tiny.finder.engine", along.key)
    assert along.companion == Companion("pose", "tiny.engine", own.key)
    assert (list(own.inputs), list(along.inputs)) == (["frame", "boxes"], ["frame"])
    assert f"--finder {finder}" in " ".join(own.command)
    assert report["finder"]["engine"] == str(path.with_name("tiny.finder.engine"))
    assert report["proof"]["run"] is False
    assert "no NVIDIA driver" in report["proof"]["why"]
    again = build_pair(str(pose), path, OPTIONS, Making(), finder=str(finder))
    assert (again["built"], again["finder"]["built"]) == (False, False)
    # without one from now on: the engine is as it was, its passport says so
    alone = build_pair(str(pose), path, OPTIONS, Making(), finder="none")
    assert alone["built"] is False
    assert read_engine(path)[1].companion is None
    crops = build_pair(str(pose), path, OPTIONS, Making(input="crops"), finder="none")
    assert list(crops["inputs"]) == ["crops"]


@pytest.mark.usefixtures("built")
def test_a_finder_alone_and_what_takes_no_frames(tmp_path: Path, finder: Path) -> None:
    path = tmp_path / "f.engine"
    report = build_pair(str(finder), path, OPTIONS, Making(), finder="default-finder")
    assert "finder" not in report
    assert list(report["inputs"]) == ["frame"]
    assert report["precision"] == "fp32"
    low = onnx.load(str(finder))
    write_spec(low, dataclasses.replace(read_finder_spec(low), precision="fp16"))
    onnx.save(low, str(tmp_path / "low.onnx"))
    low_report = build_pair(str(tmp_path / "low.onnx"), path, OPTIONS, Making())
    assert low_report["precision"] == "fp16"
    other = onnx.load(str(finder))
    del other.metadata_props[:]
    onnx.save(other, str(tmp_path / "foreign.onnx"))
    name = str(tmp_path / "foreign.onnx")
    assert list(build_pair(name, path, OPTIONS, Making())["inputs"]) == ["images"]
    with pytest.raises(InputError, match="cannot take whole frames"):
        build_pair(name, path, OPTIONS, Making(input="frame"))


def test_both_are_run_where_a_gpu_is(
    tmp_path: Path, pose: Path, finder: Path, runs: dict[str, Any]
) -> None:
    path = tmp_path / "tiny.engine"
    build_pair(str(pose), path, OPTIONS, Making(), finder=str(finder))
    for name in ("tiny.engine", "tiny.finder.engine"):
        proof = read_engine(tmp_path / name)[1].proof
        assert proof["run"] is True
        assert proof["max_px"] == 0


@pytest.mark.parametrize("which", ["tiny.engine", "tiny.finder.engine"])
def test_an_engine_that_gives_something_else_is_refused(
    tmp_path: Path, pose: Path, finder: Path, runs: dict[str, Any], which: str
) -> None:
    path = tmp_path / "tiny.engine"
    build_pair(str(pose), path, OPTIONS, Making(), finder=str(finder))
    before = {p.name: p.read_bytes() for p in tmp_path.glob("tiny*.engine*")}
    moved = tiny_models.save_pose_model(tmp_path / "moved.onnx", scale=1.1)
    onnx.save(frame_graph(onnx.load(str(moved))), str(moved))
    away = onnx.load(str(finder))
    away.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(away.graph.initializer[0]) + 3, "all_boxes"
        )
    )
    onnx.save(frame_finder(away), str(tmp_path / "away.onnx"))
    runs[which] = moved if which == "tiny.engine" else tmp_path / "away.onnx"
    with pytest.raises(ExportError, match="differ by"):
        build_pair(str(pose), path, OPTIONS, Making(), finder=str(finder), force=True)
    assert {p.name: p.read_bytes() for p in tmp_path.glob("tiny*.engine*")} == before


def test_what_the_proof_says_stands_in_the_passport(tmp_path: Path, pose: Path) -> None:
    model, source = onnx.load(str(pose)), Source("pose.onnx", "0" * 64)
    path, seen = tmp_path / "x.engine", list[Any]()

    def prove(trial: Path) -> dict[str, Any]:
        seen.append(read_engine(trial)[1].companion)
        return {"run": True, "max_px": 0.01}

    passport, _ = write_engine(
        path, model, source, OPTIONS, companion=Companion("finder", "f.engine", "k"),
        prove=prove, builder=_builder,
    )  # fmt: skip
    assert seen == [None]  # the other one need not lie beside the trial
    assert passport.proof == read_engine(path)[1].proof == {"run": True, "max_px": 0.01}
    assert json.loads(passport_path(path).read_text())["companion"]["file"] == "f.engine"


def test_check_takes_finders_and_frames(
    tmp_path: Path, pose: Path, finder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole, looking = tmp_path / "whole.onnx", tmp_path / "looking.onnx"
    onnx.save(frame_graph(onnx.load(str(pose))), str(whole))
    onnx.save(frame_finder(onnx.load(str(finder))), str(looking))
    for path, reference in ((whole, pose), (looking, finder), (finder, finder)):
        assert main(["check", str(path), "--reference", str(reference)]) == 0
        assert json.loads(capsys.readouterr().out)["max_px"] == 0
    other = tiny_models.save_pose_model(tmp_path / "other.onnx", scale=1.1)
    assert main(["check", str(whole), "--reference", str(other)]) == 1
    assert "keypoints differ by" in capsys.readouterr().err
