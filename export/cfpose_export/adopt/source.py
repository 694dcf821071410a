"""A foreign ONNX file, read and brought into the form that cfpose's graphs have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, version_converter

from cfpose_export.graph.rules import (
    FORBIDDEN,
    OPSET,
    SCOPES_KEY,
    load_model,
)
from cfpose_sdk.errors import ArtifactError, InputError, require
from cfpose_sdk.files import sha256
from cfpose_sdk.spec import SPEC_KEY

_EXTRA = 2  # crops more than the file takes, for the trial
_CLOSE = 1e-3  # of an answer's largest value
_LAYOUTS = {1: True, 3: False}  # axis of the three channels → whether it is [N, 3, H, W]
_INPUTS = {"float32", "float16", "uint8", "int32", "int64"}
_LARGEST = 1 << 31  # bytes; protobuf cannot hold more


@dataclass(frozen=True)
class Source:
    """A foreign network at opset OPSET, and its one input."""

    path: Path
    sha256: str
    model: onnx.ModelProto
    input: str
    dtype: np.dtype[Any]
    channels_first: bool
    size_wh: tuple[int, int]
    batch: int  # of the file; 0 where it is open

    def pixels(self, planes: NDArray[np.floating]) -> NDArray[Any]:
        """(N, H, W, 3) normalised pixels as the network takes them."""
        ordered = planes.transpose(0, 3, 1, 2) if self.channels_first else planes
        if self.dtype.kind in "iu":
            ordered = np.rint(ordered)
        return np.ascontiguousarray(ordered.astype(self.dtype))


def read_source(path: Path, size_wh: tuple[int, int] | None = None) -> Source:
    """Read a network; `size_wh`: of its input, where the file leaves it open.

    Raises ArtifactError for a file that is no ONNX file, is an artifact already, lacks its external
    weights, or holds what runtimes do not take alike; InputError when the size is missing.
    """
    model = _load(path)
    if any(entry.key == SPEC_KEY for entry in model.metadata_props):
        raise ArtifactError(f"{path} is a cfpose artifact already; give the foreign network's file")
    if model.ByteSize() >= _LARGEST:
        raise ArtifactError(f"{path} holds {model.ByteSize()} bytes; expected less than 2 GiB")
    _strip(model)
    _check_operators(path, model)
    name, dims, dtype = _image_input(path, model)
    axis = next((a for a in _LAYOUTS if dims[a] == 3), None)
    if axis is None:
        raise ArtifactError(
            f"{path.name} takes {name} {dims}; expected an image [N, 3, H, W] or [N, H, W, 3]"
        )
    first = _LAYOUTS[axis]
    height, width = dims[2:] if first else dims[1:3]
    if size_wh is not None:
        if (height or size_wh[1], width or size_wh[0]) != size_wh[::-1]:
            raise InputError(f"{path.name} takes {width} x {height}, --size says {size_wh}")
        width, height = size_wh
    if not height or not width:
        raise InputError(f"{path.name} leaves the size of its input open; give --size WIDTH HEIGHT")
    value = model.graph.input[0].type.tensor_type.shape
    batch = dims[0]
    sides = [batch, 3, height, width] if first else [batch, height, width, 3]
    for dim, side in zip(value.dim, sides, strict=True):
        if side:
            dim.dim_value = side
        else:
            dim.dim_param = "N"
    if not all(output.type.tensor_type.HasField("shape") for output in model.graph.output):
        zeros = np.zeros([side or 1 for side in sides], dtype)
        _state_shapes(model, run_network(model, {name: zeros}, path.name))
    size = (width, height)
    digest = sha256(path.read_bytes())
    return Source(path, digest, _at_opset(path, model), name, dtype, first, size, batch)


def run_network(
    model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]], label: str
) -> dict[str, NDArray[Any]]:
    """A graph's outputs, by onnxruntime on the CPU. Raises ArtifactError when it does not run."""
    require("onnxruntime", extra="cpu", why="adopting a network")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        values = session.run(None, dict(feeds))
    except Exception as error:  # onnxruntime's own classes are private and many
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"{label} does not run in onnxruntime: {reason}") from error
    return dict(zip((o.name for o in session.get_outputs()), values, strict=True))


def precision_of(model: onnx.ModelProto) -> str:
    """int8 for a quantised graph, fp16 for one with float16 weights, else fp32."""
    kinds = {node.op_type for node in model.graph.node}
    if kinds & {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"}:
        return "int8"
    halves = sum(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    return "fp16" if halves * 2 > len(model.graph.initializer) else "fp32"


def _load(path: Path) -> onnx.ModelProto:
    """As `load_model`, but outputs may lack a shape, as converters from TensorFlow leave it."""
    try:
        model = onnx.load_model(path)
    except FileNotFoundError as error:
        if path.is_file():
            raise ArtifactError(
                f"{path.name} keeps weights in a file beside it that is not there: {error}"
            ) from error
        raise ArtifactError(f"cannot read {path}: {error}") from error
    except Exception as error:  # protobuf's and onnx's own classes share no base
        if "external" in str(error).lower():
            raise ArtifactError(
                f"{path.name} keeps weights in a file beside it that cannot be read: {error}"
            ) from error
        return load_model(path)  # says what is wrong
    if all(output.type.tensor_type.HasField("shape") for output in model.graph.output):
        return load_model(path)
    return model


def _state_shapes(model: onnx.ModelProto, values: Mapping[str, NDArray[Any]]) -> None:
    """Write into the graph the shapes that its outputs have."""
    for output in model.graph.output:
        element = output.type.tensor_type.elem_type
        shape = values[output.name].shape
        output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, element, shape))


def _strip(model: onnx.ModelProto) -> None:
    """Drop what old exporters add: weights as inputs, unused domains, traces and notes."""
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    used = {node.domain or "" for node in model.graph.node} | {""}
    opsets = [o for o in model.opset_import if (o.domain if o.domain != "ai.onnx" else "") in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
    del model.metadata_props[:]


def _check_operators(path: Path, model: onnx.ModelProto) -> None:
    foreign = {
        f"{n.domain}.{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx")
    }
    if foreign:
        raise ArtifactError(
            f"{path.name} holds operators of one runtime alone, {sorted(foreign)}; export it with "
            f"ONNX's own (for a quantised network: QuantizeLinear and DequantizeLinear)"
        )
    if bad := sorted({node.op_type for node in model.graph.node} & set(FORBIDDEN)):
        raise ArtifactError(
            f"{path.name} holds {bad}, so it is more than a pose network, or its decoder is built "
            f"in; export the network's raw outputs"
        )


def _image_input(path: Path, model: onnx.ModelProto) -> tuple[str, list[int], np.dtype[Any]]:
    """Name, sides (0 where open) and type of the one input."""
    inputs = model.graph.input
    if len(inputs) != 1:
        raise ArtifactError(
            f"{path.name} has inputs {[value.name for value in inputs]}; expected one image"
        )
    tensor = inputs[0].type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim]
    if len(dims) != 4:
        raise ArtifactError(
            f"{path.name} takes {inputs[0].name} of {len(dims)} axes; expected an image "
            f"[N, 3, H, W] or [N, H, W, 3]"
        )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if dtype.name not in _INPUTS:
        raise ArtifactError(f"{path.name} takes {dtype.name} pixels; expected {sorted(_INPUTS)}")
    return inputs[0].name, dims, dtype


def _at_opset(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if version == OPSET:
        return model
    try:
        converted = version_converter.convert_version(model, OPSET)
        onnx.checker.check_model(converted)
    except Exception as error:  # the converter raises RuntimeError, and what its adapters raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ArtifactError(
            f"{path.name} is written at opset {version} and cannot be brought to {OPSET} "
            f"({reason}); export it again at opset {OPSET}"
        ) from error
    _keep_scopes(model, converted)
    return converted


def _keep_scopes(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """The converter drops the modules' names; give them back to the nodes of equal results."""
    scopes = {
        node.output[0]: entry.value
        for node in before.graph.node
        for entry in node.metadata_props
        if entry.key == SCOPES_KEY
    }
    for node in after.graph.node:
        known = any(entry.key == SCOPES_KEY for entry in node.metadata_props)
        if not known and node.output[0] in scopes:
            node.metadata_props.add(key=SCOPES_KEY, value=scopes[node.output[0]])


def with_open_batch(source: Source) -> onnx.ModelProto | None:
    """The network with any number N of crops, or None where that changes its answers.

    The first side of the input becomes N, and Reshapes that name the batch infer it instead. The
    result must answer crops together as the file does in its own batches.
    """
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    graph = model.graph
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    del graph.value_info[:]
    for value in graph.output:
        element = value.type.tensor_type.elem_type
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, element, None))
    _free_reshapes(graph, source.batch)
    return model if _answers_alike(source, model) else None


def _free_reshapes(graph: onnx.GraphProto, batch: int) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                constants[node.output[0]] = attribute.t
    for index, node in enumerate(list(graph.node)):
        tensor = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if tensor is None:
            continue
        shape = numpy_helper.to_array(tensor)
        if len(shape) and shape[0] == batch:
            freed = np.array(shape)
            freed[0] = 0 if (shape == -1).any() else -1
            name = f"reshape.{index}.shape"
            graph.initializer.append(numpy_helper.from_array(freed, name))
            node.input[1] = name


def _answers_alike(source: Source, model: onnx.ModelProto) -> bool:
    batch, (width, height) = source.batch, source.size_wh
    draw = np.random.Generator(np.random.PCG64(1))
    crops = source.pixels(draw.uniform(0, 255, (2 * batch + _EXTRA, height, width, 3)))
    label = source.path.name
    try:
        together = run_network(model, {source.input: crops}, label)
    except ArtifactError:
        return False
    for first in (0, batch, _EXTRA + batch):
        part = crops[first : first + batch]
        for name, alone in run_network(source.model, {source.input: part}, label).items():
            both = together[name][first : first + batch]
            if both.shape != alone.shape:
                return False
            size = float(np.abs(alone).max(initial=0.0)) or 1.0
            if not float(np.abs(both - alone).max(initial=0.0)) <= _CLOSE * size:
                return False
    return True
