"""int8: a float32 graph with explicit symmetric quantisation of its backbone.

The convolutions of the backbone, but for its stem, read int8: activations with one scale a tensor,
weights with one a channel, zero points 0, as TensorRT asks for. Biases, sums, head, decode and
refiner stay float32. The ranges come from real crops. The rewriting is onnxruntime's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import onnx

from cfpose_export.graph.rules import read_spec, write_spec
from cfpose_export.precision.typed import belongs, modules_of, scope
from cfpose_export.proof.crops import CALIBRATION_COUNT, CALIBRATION_SEED, Crops, read_hard
from cfpose_sdk.errors import ExportError, InputError, require

PART = "backbone"  # of a module's dotted name
# of the backbone, and never quantised: few channels with wide ranges, and little to gain
STEM = (
    "bn1", "bn2", "conv1", "conv2", "layer1",  # HRNet
    "body.conv_stem", "body.bn0",  # EfficientNet-Lite
    "stem", "first", "stages.0", "stages.1.0.expand",  # MobileNet, as of MoveNet
)  # fmt: skip
PERCENTILE = 100.0  # of an activation's magnitudes; what lies beyond saturates
BINS = 2048
BATCH = 4  # crops at once: every value of the graph is held


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Calibrated ranges of the inputs of a graph's convolutions."""

    tensors: Any  # onnxruntime's TensorsData
    crops: int


def calibrate(model: onnx.ModelProto, crops: Crops, percentile: float = PERCENTILE) -> Ranges:
    """Run the graph on `crops` (N, H, W, 3) and note how far each convolution's input reaches.

    Raises InputError without crops. Leaves no file behind.
    """
    require("onnxruntime", extra="cpu", why="int8 quantisation")
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    if not len(crops):
        raise InputError("int8 needs crops to calibrate on, got none")
    with tempfile.TemporaryDirectory() as folder, _silent():
        path = Path(folder) / "model.onnx"
        onnx.save_model(model, path)
        options: dict[str, Any] = {"symmetric": True}
        method = CalibrationMethod.MinMax  # the largest magnitudes, inside the graph: much faster
        if percentile < 100:
            method = CalibrationMethod.Percentile
            options |= {"num_bins": BINS, "percentile": percentile}
        calibrator = create_calibrator(
            path,
            ["Conv"],
            str(Path(folder) / "augmented.onnx"),
            method,
            extra_options=options,
        )
        for start in range(0, len(crops), BATCH):
            calibrator.collect_data(_Reader(crops[start : start + BATCH]))
        tensors = calibrator.compute_data()
    return Ranges(tensors, len(crops))


def calibrate_on_people(model: onnx.ModelProto, folder: Path | None) -> Ranges:
    """Ranges from CALIBRATION_COUNT people of a folder of photos, other crops than a proof's.

    None: the demo photos.
    """
    spec = read_spec(model)
    return calibrate(model, read_hard(folder, spec, CALIBRATION_COUNT, seed=CALIBRATION_SEED).crops)


def quantised_modules(model: onnx.ModelProto, keep: Collection[str] = ()) -> tuple[str, ...]:
    """The modules whose convolutions run in int8, in the order of the graph."""
    return modules_of(model, _chosen(model, keep))


def quantise(model: onnx.ModelProto, ranges: Ranges, keep: Collection[str] = ()) -> onnx.ModelProto:
    """The quantised graph; `model` is left alone. `keep`: modules that stay float32.

    Equal arguments give equal bytes. Raises ExportError when nothing would be quantised.
    """
    require("onnxruntime", extra="cpu", why="int8 quantisation")
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import QuantType

    names = [model.graph.node[index].name for index in sorted(_chosen(model, keep))]
    if not names:
        raise ExportError("no convolution of the backbone is left to quantise; keep less")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with _silent():
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=ranges.tensors,
            nodes_to_quantize=names,
            nodes_to_exclude=[],
            op_types_to_quantize=["Conv"],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,  # an int32 bias breaks fusion in TensorRT
                "OpTypesToExcludeOutputQuantization": ["Conv"],  # Relu and sums come first
            },
        )
        quantizer.quantize_model()
        quantised = quantizer.model.model
    result = onnx.ModelProto()
    result.CopyFrom(quantised)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    opsets = [entry for entry in result.opset_import if entry.domain == ""]
    del result.opset_import[:]
    result.opset_import.extend(opsets)
    del result.graph.value_info[:]
    _sort(result, [node.name for node in model.graph.node])
    onnx.checker.check_model(result, full_check=True)
    write_spec(result, dataclasses.replace(read_spec(model), precision="int8", gate={}))
    return result


class _Reader:
    """onnxruntime's CalibrationDataReader, of one batch."""

    def __init__(self, crops: Crops) -> None:
        self._feeds: Iterator[dict[str, Crops]] = iter([{"crops": crops}])

    def get_next(self) -> dict[str, Crops] | None:
        return next(self._feeds, None)


def _chosen(model: onnx.ModelProto, keep: Collection[str]) -> frozenset[int]:
    nodes = list(model.graph.node)
    known = [scope(node) for node in nodes] + [node.name for node in nodes]
    if unknown := [name for name in keep if not any(belongs(k, [name]) for k in known)]:
        raise InputError(f"nothing in the graph is called {unknown}; see: cfpose-export inspect")
    return frozenset(
        index
        for index, node in enumerate(nodes)
        if node.op_type == "Conv"
        and _is_quantised(scope(node))
        and not belongs(scope(node), keep)
        and node.name not in keep
    )


def _is_quantised(module: str) -> bool:
    _, part, rest = module.partition(PART)
    layer = rest.removeprefix(".")
    return bool(part) and bool(layer) and not any(belongs(layer, (stem,)) for stem in STEM)


def _sort(model: onnx.ModelProto, order: Collection[str]) -> None:
    """Put the nodes into their old order, each new one right before the first that reads it."""
    maker = {name: node for node in model.graph.node for name in node.output}
    old = {node.name: node for node in model.graph.node}
    placed: dict[str, onnx.NodeProto] = {}

    def place(node: onnx.NodeProto) -> None:
        if node.name in placed:
            return
        for name in node.input:
            if name in maker:
                place(maker[name])
        placed[node.name] = node

    for name in order:
        place(old[name])
    if len(placed) != len(model.graph.node):
        raise ExportError("the quantiser left nodes that nothing reads")
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in placed.values()]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The quantiser prints, and logs advice about steps that are not wanted here."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
