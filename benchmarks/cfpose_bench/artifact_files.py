"""The files that a model consists of: what decides its answers, and what it weighs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cfpose_sdk.backends.openvino import ir_weights
from cfpose_sdk.passport import passport_path

ENGINES = (".engine", ".plan")


def files_of(path: Path, *, sidecar: bool = False) -> tuple[Path, ...]:
    """The artifact first, then the files beside it that are there, by name.

    An .xml has its weights in a .bin, an .onnx may have them in external data, an engine has its
    passport. `sidecar`: rtmlib's NAME.json, whose mean and std decide the answers, counts too.
    """
    kind, others = path.suffix.lower(), set()
    if kind == ".xml":
        others = {ir_weights(path)}
    elif kind == ".onnx":
        others = _external_data(path)
    elif kind in ENGINES:
        others = {passport_path(path)}
    if sidecar:
        others.add(path.with_suffix(".json"))
    return (path, *sorted(other for other in others if other.is_file()))


def _external_data(path: Path) -> set[Path]:
    """Files of tensors outside the graph; without the package onnx, those of the usual names."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        return {path.with_name(path.name + ending) for ending in (".data", "_data")}
    try:
        graph = onnx.load_model(path, load_external_data=False).graph
    except DecodeError:  # whoever opens it says so
        return set()
    return {
        path.parent / entry.value
        for tensor in _tensors(graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _tensors(graph: Any) -> list[Any]:
    """The constants of a graph and of those inside its nodes."""
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                found.append(attribute.t)
            if attribute.HasField("g"):
                found += _tensors(attribute.g)
    return found
