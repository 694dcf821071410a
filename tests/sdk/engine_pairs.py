"""A pose engine and its finder on fake GPUs: tiny graphs on frames, computed by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime

from cfpose_export.graph.frame_finder import frame_finder
from cfpose_export.graph.frame_input import frame_graph
from cfpose_sdk.backends.tensorrt.passport import Companion

PEOPLE = 70
LEAST, BEST, MOST = (32, 32, 3), (60, 80, 3), (400, 400, 3)


def save_graphs(tiny: ModuleType, folder: Path) -> Mapping[str, Path]:
    """Tiny models on frames: a pose model, and a finder whose boxes depend on the picture."""
    spread = np.random.default_rng(0).uniform(2, 60, (PEOPLE, 2))
    boxes = np.concatenate([spread - 2, spread + 2], axis=1)
    scores = np.linspace(0.99, 0.1, PEOPLE)
    paths = {
        "pose": tiny.save_pose_model(folder / "pose.crops.onnx"),
        "finder": tiny.save_finder(folder / "finder.boxes.onnx", boxes.tolist(), scores.tolist()),
    }
    finder = onnx.load(str(paths["finder"]))
    _follow_the_picture(finder)
    found = {"pose": frame_graph(onnx.load(str(paths["pose"]))), "finder": frame_finder(finder)}
    for name, model in found.items():
        onnx.save(model, str(folder / f"{name}.onnx"))
    return {name: folder / f"{name}.onnx" for name in found}


def _follow_the_picture(finder: onnx.ModelProto) -> None:
    """Scores fall with the mean of the letterbox, so that another picture has other people."""
    node, constant = onnx.helper.make_node, onnx.numpy_helper.from_array
    kept = [n for n in finder.graph.node if n.output[0] == "boxes"]
    del finder.graph.node[:]
    finder.graph.node.extend(
        [
            *kept,
            node("Cast", ["images"], ["pixels"], to=onnx.TensorProto.FLOAT),
            node("ReduceMean", ["pixels", "all_axes"], ["grey"], keepdims=0),
            node("Div", ["grey", "white"], ["share"]),
            node("Mul", ["all_scores", "share"], ["scores"]),
        ]
    )
    white = np.array(255, np.float32)
    finder.graph.initializer.extend([constant(np.arange(4), "all_axes"), constant(white, "white")])


def write_pair(
    gpu: Any, fake: ModuleType, graphs: Mapping[str, Path], folder: Path, *, along: bool = True,
    **changes: Any,
) -> Path:  # fmt: skip
    """Write `tiny.engine`, with `tiny.finder.engine` unless `along` is False."""
    names = {"pose": "tiny.engine", "finder": "tiny.finder.engine"}
    for role, name in names.items() if along else [("pose", "tiny.engine")]:
        other = "finder" if role == "pose" else "pose"
        companion = Companion(other, names[other], other) if along else None  # type: ignore[arg-type]
        gpu.trt.networks[role.encode()] = network = _network(fake, graphs[role])
        metadata = {p.key: p.value for p in onnx.load(str(graphs[role])).metadata_props}
        fake.write_engine(
            folder / name, gpu.trt.trt, metadata, network=network, data=role.encode(), key=role,
            companion=companion, **changes,
        )  # fmt: skip
    return folder / "tiny.engine"


def _network(fake: ModuleType, path: Path) -> Any:
    """An engine that gives what onnxruntime gives on the CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]

    def answer(given: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(given)), strict=True))

    ranges = {"frame": [(LEAST, BEST, MOST)] * 3}
    if len(session.get_inputs()) > 1:
        ranges["boxes"] = [((1, 4), (n, 4), (n, 4)) for n in (1, 8, 32)]
    kinds = {"frame": "uint8", "boxes": "float32"}
    shapes = {
        o.name: [s if isinstance(s, int) else -1 for s in o.shape] for o in session.get_outputs()
    }
    return fake.Network({n: (kinds[n], r) for n, r in ranges.items()}, shapes, answer)
