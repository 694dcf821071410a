"""Whatever `cfpose-export inspect` is given: facts as JSON, or an error of cfpose's tree."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from onnx import TensorProto, helper

from cfpose_export.cli import main
from cfpose_sdk import commands
from cfpose_sdk.backends.bundled import BUNDLED_FINDER
from tests.any_values import any_json, any_text, bent_bytes, draws, seeds


@pytest.fixture(scope="module")
def graph() -> bytes:
    """A small graph with a constant and metadata."""
    value = helper.make_tensor("shape", TensorProto.INT64, [2], [1, -1])
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Cast", ["crops"], ["floats"], to=TensorProto.FLOAT),
                helper.make_node("Reshape", ["floats", "shape"], ["flat"]),
            ],
            "small",
            [helper.make_tensor_value_info("crops", TensorProto.UINT8, ["n", 4, 4, 3])],
            [helper.make_tensor_value_info("flat", TensorProto.FLOAT, [1, "m"])],
            [value],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    helper.set_model_props(model, {"cfpose.spec": '{"name": "x"}'})
    return bytes(model.SerializeToString())


@draws(600)
@given(seeds)
def test_any_file_of_a_model(
    tmp_path: Path,
    graph: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rng: random.Random,
) -> None:
    file = tmp_path / f"m{rng.choice(('.onnx', '.onnx', '.onnx', '.engine', '.plan', '.xml', ''))}"
    file.write_bytes(bent_bytes(rng, graph))
    beside = Path(f"{file}.json")
    beside.unlink(missing_ok=True)
    if rng.random() < 0.8:
        beside.write_text(json.dumps(any_json(rng)))
    _inspect(str(file), monkeypatch, capsys)


@draws(200)
@given(seeds)
def test_any_path_of_a_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rng: random.Random,
) -> None:
    monkeypatch.chdir(tmp_path)
    _inspect(any_text(rng) + rng.choice(("", ".onnx", ".engine", ".xml")), monkeypatch, capsys)


@pytest.mark.parametrize("command", ["inspect", "check"])
def test_the_bundled_finder_has_a_name(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "default-finder"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report.get("file", str(BUNDLED_FINDER)) == str(BUNDLED_FINDER)
    assert report.get("max_px", 0) == 0  # beside itself


def _inspect(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cfpose-export", "inspect", path])
    try:
        code: object = commands.export()
    except SystemExit as end:  # argparse
        code = end.code
    out, err = capsys.readouterr()
    assert code == (2 if err else 0)
    assert bool(out) == (code == 0)
    if out:
        assert json.loads(out)["file"] == str(Path(path))
