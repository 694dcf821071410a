"""Graphs of lower precisions and what runtimes make of them: by `cfpose-export`, child processes.

The SDK cannot lower or judge a graph; the exporter of the same installation can, where onnx is
there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cfpose_sdk.backends.bundled import BUNDLED_FINDER
from cfpose_sdk.backends.openvino import lacking
from cfpose_sdk.backends.tuned import Way, tuned_file
from cfpose_sdk.errors import is_installed
from cfpose_sdk.files import digest
from cfpose_sdk.tuning.workplace import Workplace

Network = Literal["pose", "finder"]
TYPES = {"fp32": "float32", "fp16": "fp16", "bf16": "bf16", "int8": "int8"}
# graph's precision, device, what OpenVINO computes in beyond the graph. onnxruntime has no bf16 on
# the CPU, OpenVINO computes fp16 in float32 there, and finders have no int8
_POSE = (
    ("fp16", "cpu", "f32"), ("int8", "cpu", "f32"), ("fp32", "openvino", "f32"),
    ("bf16", "openvino", "f32"), ("int8", "openvino", "f32"), ("int8", "openvino", "bf16"),
)  # fmt: skip
_FINDER = (("fp16", "cpu", "f32"), ("fp32", "openvino", "f32"), ("bf16", "openvino", "f32"))


@dataclass(frozen=True)
class ProvenWay:
    """A way with what it does to the answers; `problem`: why it is refused, "" where it passed."""

    way: Way
    drift: Mapping[str, Any]  # as of the gate; {} for what all is measured against
    problem: str = ""


class Proofs:
    """The ways in which a network can run here, each proven or refused.

    `photos`: a folder with people.json, None for the demo photos.
    """

    def __init__(self, work: Workplace, model: Path, photos: Path | None) -> None:
        self._work, self._photos = work, photos
        self._files: Mapping[Network, Path] = {"pose": model, "finder": BUNDLED_FINDER}
        self._graphs: dict[tuple[Network, str], Path | str] = {}  # or why there is none
        self.left_out: dict[str, str] = {}  # what was not tried: why

    def ways(self, network: Network) -> Iterator[ProvenWay]:
        """Float32 in onnxruntime first, which needs no proof; then what this machine has."""
        yield ProvenWay(Way(), {})
        if not is_installed("onnx"):
            self.left_out["OpenVINO, and lower precisions"] = (
                "their proof needs onnx; run: pip install 'cfpose-sdk[openvino]'"
            )
            return
        for precision, device, rest in _POSE if network == "pose" else _FINDER:
            way = Way(device, TYPES[precision], precision="bf16" if rest == "bf16" else "f32")
            if why := self._missing(way):
                self.left_out[way.name] = why
                continue
            yield self._proven(network, precision, way)

    def _missing(self, way: Way) -> str:
        """Why a way cannot run on this machine; "" where it can."""
        if way.device != "openvino":
            return ""
        if not is_installed("openvino"):
            return "OpenVINO is not installed; run: pip install 'cfpose-sdk[openvino]'"
        if "bf16" in (way.types, way.precision) and (why := lacking("bf16")):
            return why
        return lacking("int8") if way.types == "int8" else ""

    def _proven(self, network: Network, precision: str, way: Way) -> ProvenWay:
        graph = self._files[network] if precision == "fp32" else self._graph(network, precision)
        if isinstance(graph, str):
            return ProvenWay(way, {}, graph)
        if precision != "fp32":
            way = Way(way.device, way.types, graph.name, digest(graph), way.precision)
        words = ["judge", str(graph), "--reference", str(self._files[network])]
        words += ["--device", way.device, "--precision", way.precision, *self._photo_words()]
        done = self._work.command("export", *words)
        try:
            judged = json.loads(done.stdout)
        except ValueError:
            return ProvenWay(way, {}, _reason(done.stderr))
        return ProvenWay(way, judged["figures"], "; ".join(judged["problems"]))

    def _graph(self, network: Network, precision: str) -> Path | str:
        """The graph of a precision, or why there is none; made once."""
        key = (network, precision)
        if key not in self._graphs:
            source = self._files[network]
            # the finder's are each model's own, too: their proofs may stand on other photos
            beside = tuned_file(self._files["pose"], digest(self._files["pose"])).stem
            name = f"{beside}-{network}-{precision}.onnx"
            target = self._work.folder / name
            words = ["lower", str(source), "--precision", precision, "-o", str(target)]
            words += self._photo_words()
            if network == "pose":
                words.append("--no-culprits")
            done = self._work.command("export", *words)
            self._graphs[key] = _reason(done.stderr) if done.returncode else target
        return self._graphs[key]

    def _photo_words(self) -> list[str]:
        return [] if self._photos is None else ["--photos", str(self._photos)]


def _reason(complaint: str) -> str:
    """What a command said last, in one line."""
    lines = [line for line in complaint.strip().splitlines() if line.strip()]
    return lines[-1].removeprefix("cfpose-export: ") if lines else "it ended without a word"
