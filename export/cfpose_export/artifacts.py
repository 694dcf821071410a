"""`inspect`: what a model file holds. `bundle`: proven files become the SDK's default models."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from cfpose_export.engines.tensorrt import scope_of
from cfpose_export.graph.rules import element_types, load_model, model_path, read_spec
from cfpose_sdk.backends.bundled import BUNDLED_FINDER, BUNDLED_MODEL, POSE_MODELS
from cfpose_sdk.backends.openvino import ir_record
from cfpose_sdk.backends.tensorrt.passport import read_engine
from cfpose_sdk.errors import ArtifactError, ExportError
from cfpose_sdk.files import write_file
from cfpose_sdk.spec import FINDER_KEY, FinderSpec

MAX_BYTES = 40_000_000  # of all bundled weights together


def add_commands(commands: Any) -> None:
    """Add `inspect` and `bundle` to argparse's sub-parsers."""
    inspect = commands.add_parser("inspect", help="print what a model file holds, as JSON")
    inspect.set_defaults(run=_inspect)
    inspect.add_argument(
        "model",
        type=Path,
        help="an .onnx, .engine, .plan or .xml file, or a bundled model; default-finder",
    )
    put = commands.add_parser("bundle", help="make proven files the SDK's default models")
    put.set_defaults(run=_bundle)
    put.add_argument(
        "--pose",
        type=Path,
        action="append",
        default=[],
        help=f"proven pose .onnx; named {' or '.join(POSE_MODELS)} it takes that place, with "
        f"another name the default's; may be repeated",
    )
    put.add_argument("--finder", type=Path, help="finder .onnx")
    put.add_argument("--folder", type=Path, help="default: the installed SDK's models folder")


def _inspect(arguments: argparse.Namespace) -> None:
    print(json.dumps(describe(model_path(arguments.model)), indent=2))


def _bundle(arguments: argparse.Namespace) -> None:
    for path in bundle(arguments.pose, arguments.finder, arguments.folder):
        print(path)


def describe(path: Path) -> dict[str, Any]:
    """The facts of an .onnx, .engine, .plan or .xml file as JSON values.

    Raises ArtifactError when the file, or what must lie beside it, cannot be used.
    """
    suffix = path.suffix.lower()
    if suffix in (".engine", ".plan"):
        _, passport = read_engine(path)
        record = dataclasses.asdict(passport)
        record["metadata"] = {name: _value(text) for name, text in passport.metadata.items()}
        return {"file": str(path), "bytes": path.stat().st_size, **record}
    if suffix == ".xml":
        beside = ir_record(path)
        try:
            return {"file": str(path), **json.loads(beside.read_text(encoding="utf-8"))}
        except (OSError, TypeError, ValueError, RecursionError) as error:
            raise ArtifactError(
                f"{path} has no record {beside.name} that can be read ({error}); "
                f"run: cfpose-export openvino MODEL.onnx -o {path}"
            ) from error
    return _graph(path)


def _graph(path: Path) -> dict[str, Any]:
    model = load_model(path)
    try:
        facts = _facts(model)
        json.dumps(facts)  # protobuf gives bytes for names that are not UTF-8
    except ArtifactError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: its graph says {error}") from error
    return {"file": str(path), "bytes": path.stat().st_size, **facts}


def _facts(model: onnx.ModelProto) -> dict[str, Any]:
    scopes = _types_by_scope(model)
    types: Counter[str] = Counter()
    for row in scopes.values():
        types.update(row)
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "producer": f"{model.producer_name} {model.producer_version}",
        "inputs": {value.name: _shape(value) for value in model.graph.input},
        "outputs": {value.name: _shape(value) for value in model.graph.output},
        "constants": sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
        "operators": dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
        "nodes_by_type": dict(sorted(types.items())),
        "nodes_by_scope": scopes,
        "metadata": {entry.key: _value(entry.value) for entry in model.metadata_props},
    }


def _types_by_scope(model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """How many nodes of each module give which type first."""
    types = element_types(model)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for node in model.graph.node:
        kind = types.get(node.output[0], onnx.TensorProto.UNDEFINED)
        known = kind != onnx.TensorProto.UNDEFINED
        name = onnx.helper.tensor_dtype_to_np_dtype(kind).name if known else "unknown"
        counts[scope_of(node)][name] += 1
    return {scope: dict(sorted(row.items())) for scope, row in sorted(counts.items())}


def _shape(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return f"{kind} [{', '.join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)}]"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def bundle(poses: Sequence[Path], finder: Path | None, folder: Path | None = None) -> list[Path]:
    """Put pose models, a finder or both where `PoseEstimator()` looks for what is bundled.

    A pose model takes the place of the bundled one of its name, any other that of the default.
    Returns the files written. Raises ExportError when a pose model carries no proof, two take one
    place or the bundle grows too large, ArtifactError when `finder` is no finder or a file cannot
    be read.
    """
    folder = BUNDLED_MODEL.parent if folder is None else folder
    targets: dict[Path, bytes] = {}
    for pose in poses:
        spec = read_spec(load_model(pose))
        if not spec.gate:
            raise ExportError(f"{pose} carries no proof; write it with: cfpose-export onnx")
        target = folder / POSE_MODELS.get(spec.name, BUNDLED_MODEL).name
        if target in targets:
            raise ExportError(f"two pose models are for {target.name}; give one of them")
        targets[target] = pose.read_bytes()
    if finder is not None:
        metadata = {entry.key: entry.value for entry in load_model(finder).metadata_props}
        if FINDER_KEY not in metadata:
            raise ArtifactError(f"{finder} carries no {FINDER_KEY}, so it is not a person finder")
        FinderSpec.from_json(metadata[FINDER_KEY])
        targets[folder / BUNDLED_FINDER.name] = finder.read_bytes()
    stay = [p for p in folder.glob("*.onnx") if p not in targets]
    total = sum(map(len, targets.values())) + sum(p.stat().st_size for p in stay)
    if total > MAX_BYTES:
        raise ExportError(f"the bundle would hold {total} bytes, allowed are {MAX_BYTES}")
    for target, data in targets.items():
        write_file(target, data)
    return list(targets)
