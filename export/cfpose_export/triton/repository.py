"""`cfpose-export triton`: a pose model and a finder as a model repository of Triton.

Three models: `cfpose_finder` and `cfpose_pose` are the graphs, run by Triton's onnxruntime backend,
with dynamic batching; `cfpose` takes a whole frame and calls them (Python backend). Between the two
graphs stand letterbox, suppression and crops, so that Triton's ensembles, which only connect
tensors, do not do.

Source: the ModelConfig message of Triton's model_config.proto.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from cfpose_export.graph.rules import load_model, read_spec, whole_letterboxes
from cfpose_sdk.backends.bundled import BUNDLED_FINDER, model_file
from cfpose_sdk.errors import InputError
from cfpose_sdk.files import FINDER_KEY, shown, write_file

_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
}
_WAIT_US = 500  # that a request waits for others, to share their batch


def add_commands(commands: Any) -> None:
    """Add `triton` to argparse's sub-parsers."""
    triton = commands.add_parser(
        "triton", help="write a model repository for NVIDIA's Triton Inference Server"
    )
    triton.set_defaults(run=_triton)
    triton.add_argument(
        "model", nargs="?", default="default", help="a bundled model's name, or the pose .onnx file"
    )
    triton.add_argument(
        "--finder", type=Path, default=BUNDLED_FINDER, help="finder .onnx (default: the bundled)"
    )
    triton.add_argument(
        "-o", "--folder", type=Path, required=True, help="the repository: a new or empty folder"
    )
    triton.add_argument(
        "--max-batch",
        type=int,
        default=32,
        help="people, or photos, of a run (default: %(default)s)",
    )


def _triton(arguments: argparse.Namespace) -> None:
    for path in write_repository(
        model_file(arguments.model), arguments.finder, arguments.folder, arguments.max_batch
    ):
        print(path)


def write_repository(pose: Path, finder: Path, folder: Path, max_batch: int = 32) -> list[Path]:
    """Write the three models; returns the files.

    Raises InputError for a folder that holds something, ArtifactError or ExportError for a file
    that is no pose model or finder.
    """
    if max_batch < 1:
        raise InputError(f"max_batch must be 1 or more, got {max_batch}")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{shown(folder)} holds something; give a new or an empty folder")
    graphs = {"cfpose_pose": pose, "cfpose_finder": finder}
    # whole letterboxes, so that the server can batch those of several frames
    models = {name: whole_letterboxes(load_model(path)) for name, path in graphs.items()}
    joints = len(read_spec(models["cfpose_pose"]).skeleton)
    if all(entry.key != FINDER_KEY for entry in models["cfpose_finder"].metadata_props):
        raise InputError(f"{shown(finder)} is no cfpose finder (no {FINDER_KEY} in its metadata)")
    facts = {name: _facts(model, max_batch) for name, model in models.items()}
    written = []
    for name, model in models.items():
        written.append(write_file(folder / name / "1" / "model.onnx", model.SerializeToString()))
        config = _graph_config(name, model, facts[name])
        written.append(write_file(folder / name / "config.pbtxt", config))
    code = Path(__file__).with_name("model.py").read_text(encoding="utf-8")
    written.append(write_file(folder / "cfpose" / "1" / "model.py", code))
    config = _frame_config(joints, facts)
    written.append(write_file(folder / "cfpose" / "config.pbtxt", config))
    return written


def _facts(model: onnx.ModelProto, max_batch: int) -> dict[str, Any]:
    """What a Backend says of itself; `max_batch` 0: every run has the graph's own shape."""
    batched = all(
        _sides(value)[0] == -1 and value.name != "frame" for value in model.graph.input
    ) and not any(value.name == "boxes" for value in model.graph.input)
    return {
        "inputs": [value.name for value in model.graph.input],
        "outputs": [value.name for value in model.graph.output],
        "max_batch": max_batch if batched else 0,
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
    }


def _graph_config(name: str, model: onnx.ModelProto, facts: Mapping[str, Any]) -> str:
    skipped = 1 if facts["max_batch"] else 0  # of a batched model's shapes the batch is left out

    def entries(values: Sequence[onnx.ValueInfoProto]) -> str:
        return ",".join(
            _tensor(value.name, _TYPES[value.type.tensor_type.elem_type], _sides(value)[skipped:])
            for value in values
        )

    text = f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {facts["max_batch"]}\n'
    text += f"input [{entries(model.graph.input)}\n]\noutput [{entries(model.graph.output)}\n]\n"
    if facts["max_batch"]:
        text += f"dynamic_batching {{ max_queue_delay_microseconds: {_WAIT_US} }}\n"
    return text + _parameter("cfpose", facts)


def _frame_config(joints: int, facts: Mapping[str, Mapping[str, Any]]) -> str:
    outputs = {"boxes": [4], "box_scores": [], "keypoints": [joints, 2], "confidence": [joints]}
    listed = ",".join(_tensor(n, "TYPE_FP32", [-1, *sides]) for n, sides in outputs.items())
    return (
        'name: "cfpose"\nbackend: "python"\nmax_batch_size: 0\n'
        f"input [{_tensor('frame', 'TYPE_UINT8', [-1, -1, 3])}\n]\noutput [{listed}\n]\n"
        + "".join(_parameter(name, each) for name, each in facts.items())
    )


def _tensor(name: str, kind: str, dims: Sequence[int]) -> str:
    return f'\n  {{ name: "{name}", data_type: {kind}, dims: {list(dims)} }}'


def _parameter(key: str, value: object) -> str:
    text = json.dumps(json.dumps(value))  # JSON, in quotes that protobuf's text format reads alike
    return f'parameters {{ key: "{key}" value {{ string_value: {text} }} }}\n'


def _sides(value: onnx.ValueInfoProto) -> list[int]:
    """Sides of a tensor; −1 for one that is left open."""
    sides = value.type.tensor_type.shape.dim
    return [side.dim_value if side.HasField("dim_value") else -1 for side in sides]
