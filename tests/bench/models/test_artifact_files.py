"""Which files a model is made of, and that a changed one is another model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from cfpose_bench.models.open import files_of, parse_name
from cfpose_sdk.files import digest


def test_the_weights_of_openvino_lie_beside_it(tmp_path: Path) -> None:
    path, weights = tmp_path / "model.xml", tmp_path / "model.bin"
    path.write_text("<net/>")
    weights.write_bytes(b"one")
    assert files_of(path) == (path, weights)
    before = digest(*files_of(path))
    weights.write_bytes(b"two")
    assert digest(*files_of(path)) != before


def test_external_data_of_onnx_counts(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    constant = numpy_helper.from_array(np.arange(500, dtype=np.float32), "x")
    graph = onnx.helper.make_graph([], "g", [], [], [constant])
    onnx.save_model(onnx.helper.make_model(graph), path)
    assert files_of(path) == (path,)
    onnx.save_model(
        onnx.helper.make_model(graph), path, save_as_external_data=True, location="weights",
        size_threshold=0,
    )  # fmt: skip
    assert files_of(path) == (path, tmp_path / "weights")
    path.write_bytes(b"no graph")
    assert files_of(path) == (path,)


def test_the_sidecar_counts_for_rtmlib_alone(tmp_path: Path) -> None:
    path, sidecar = tmp_path / "model.onnx", tmp_path / "model.json"
    path.write_bytes(b"")
    sidecar.write_text("{}")
    assert parse_name(f"rtmlib:{path}").files == (path, sidecar)
    assert parse_name(str(path)).files == (path,)


def test_one_file_has_its_plain_hash(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"abc")
    assert digest(*files_of(path)).startswith("ba7816bf")
