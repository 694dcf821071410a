"""An ONNX graph as OpenVINO's files, compared with onnxruntime before they are written."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from cfpose_export.graph.rules import load_model, read_spec
from cfpose_export.proof.compare import Agreement, Bound, compare_runtimes, judge_agreement
from cfpose_export.proof.crops import Crops
from cfpose_sdk.backends import open_backend
from cfpose_sdk.backends.openvino import ir_record, ir_weights, shared_core
from cfpose_sdk.errors import InputError, require
from cfpose_sdk.files import sha256, write_file

RECORD_VERSION = 1


def write_openvino(
    source: Path, output: Path, crops: Crops, bound: Bound, min_confidence: float
) -> Agreement:
    """Convert a pose graph and write NAME.xml, NAME.bin and the record NAME.xml.json.

    The spec travels inside the .xml. Weights keep their types. Raises ExportError, and writes
    nothing, when OpenVINO in float32 is further from onnxruntime than the bound.
    """
    if output.suffix.lower() != ".xml":
        raise InputError(f"{output} must end in .xml")
    require("openvino", "filelock", extra="openvino", why="writing an OpenVINO model")
    require("onnxruntime", extra="cpu", why="the proof of an OpenVINO model")
    import filelock
    import openvino

    spec = read_spec(load_model(source))
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "model.xml"
        model = shared_core().read_model(str(source))
        openvino.serialize(model, str(trial), str(ir_weights(trial)))
        with (
            open_backend(source, device="cpu") as reference,
            open_backend(trial, device="openvino") as candidate,
        ):
            agreement = compare_runtimes(reference, candidate, crops, min_confidence)
        judge_agreement(agreement, bound)
        parts = {"xml": trial.read_bytes(), "bin": ir_weights(trial).read_bytes()}
    record: dict[str, Any] = {
        "record_version": RECORD_VERSION,
        "openvino": openvino.__version__,
        "source": source.name,
        "source_sha256": sha256(source.read_bytes()),
        "sha256": {name: sha256(data) for name, data in parts.items()},
        "gate": json.loads(agreement.to_json()),
        "spec": json.loads(spec.to_json()),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(output.with_name(f".{output.name}.lock")):
        # a kill between two of them leaves hashes that differ, which the SDK refuses
        write_file(ir_weights(output), parts["bin"])
        write_file(output, parts["xml"])
        write_file(ir_record(output), json.dumps(record, indent=2) + "\n")
    return agreement
