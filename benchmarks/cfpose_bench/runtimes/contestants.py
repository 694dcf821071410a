"""The runtimes that are compared: label, model, device and precision of each."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfpose_bench.measurement import cpus_for
from cfpose_bench.models.open import parse_name
from cfpose_bench.models.workers import ProcessWorker, Setting, open_worker
from cfpose_bench.peers.simcc_graph import write_simcc_graph
from cfpose_sdk.backends import Device
from cfpose_sdk.backends.base import ArithmeticPrecision
from cfpose_sdk.errors import BackendError, InputError, MissingDependencyError

RTMLIB = "rtmlib, onnxruntime fp32"
W32 = "cfpose, onnxruntime fp32"
W32_BF16 = "cfpose, OpenVINO bf16"
THUNDER = "MoveNet Thunder, onnxruntime fp32"
# rtmlib's own threshold is made for its own detectors; both sides take cfpose's
DETECTOR_OPTIONS = {"score_thr": 0.25, "nms_thr": 0.5}


@dataclass(frozen=True)
class Contestant:
    """One runtime of one model; `arithmetic` is that of its pose network."""

    label: str
    model: str  # as `--model`
    device: Device = "cpu"
    precision: ArithmeticPrecision = "f32"
    arithmetic: str = "fp32"
    optional: bool = False  # left out, with the reason, where its package or CPU is not there


def w32_contestants(w32: Path, simcc: Path, int8: Path | None) -> list[Contestant]:
    """rtmlib, which the others are compared with, and cfpose on each CPU backend."""
    contestants = [
        Contestant(RTMLIB, f"rtmlib:{simcc}"),
        Contestant(W32, str(w32)),
        Contestant("cfpose, OpenVINO fp32", str(w32), "openvino", optional=True),
        Contestant(W32_BF16, str(w32), "openvino", "bf16", "bf16", optional=True),
    ]
    if int8 is not None:
        label = "cfpose, OpenVINO int8"
        contestants += [
            Contestant(label, str(int8), "openvino", arithmetic="int8", optional=True),
            # the layers that are not quantised, in bf16
            Contestant(f"{label} and bf16", str(int8), "openvino", "bf16", "int8+bf16", True),
        ]
    return contestants


def default_contestants(thunder: Path | None) -> list[Contestant]:
    """MoveNet Thunder, which the others are compared with, and the bundled model."""
    contestants = []
    if thunder is not None:
        label = "MoveNet Thunder, OpenVINO fp32"
        contestants += [
            Contestant(THUNDER, f"movenet:{thunder}"),
            Contestant(label, f"movenet:{thunder}", "openvino", optional=True),
        ]
    return [
        *contestants,
        Contestant("default, onnxruntime fp32", "default"),
        Contestant("default, OpenVINO fp32", "default", "openvino", optional=True),
        Contestant("default, OpenVINO bf16", "default", "openvino", "bf16", "bf16", optional=True),
        Contestant("default, tuned", "tuned:default", arithmetic="tuned", optional=True),
    ]


def write_rtmlib_graph(w32: Path, folder: Path, detector: Path | None) -> Path:
    """The W32 artifact's network for rtmlib, with the detector that it is to take."""
    target = folder / f"{w32.stem}-simcc.onnx"
    write_simcc_graph(w32, target)
    if detector is not None:
        sidecar = target.with_suffix(".json")
        options = json.loads(sidecar.read_text(encoding="utf-8"))
        named = {"path": str(detector.resolve()), **DETECTOR_OPTIONS}
        sidecar.write_text(json.dumps({**options, "detector": named}), encoding="utf-8")
    return target


@dataclass
class Arena:
    """Opened workers, each a process, until the block ends; and the runtimes that could not run."""

    threads: int
    python: str | None = None  # interpreter of rtmlib's environment
    left_out: list[dict[str, str]] = field(default_factory=list)
    _opened: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def open(
        self, contestants: list[Contestant], *, find: bool, detector: Path | None
    ) -> dict[str, ProcessWorker]:
        """Workers by label. Raises as `open_worker`; BackendError for another onnxruntime."""
        workers = {}
        for contestant in contestants:
            setting = Setting(
                device=contestant.device,
                threads=self.threads,
                cpus=cpus_for(self.threads),
                find=find,
                detector=None if detector is None else str(detector),
                precision=contestant.precision,
            )
            try:
                worker = _open(contestant, setting, self.python)
            except (BackendError, MissingDependencyError) as error:
                if not contestant.optional:
                    raise
                self.left_out.append({"label": contestant.label, "why": str(error)})
                continue
            workers[contestant.label] = self._opened.enter_context(closing(worker))
        return workers


def _open(contestant: Contestant, setting: Setting, python: str | None) -> ProcessWorker:
    name = parse_name(contestant.model)
    if name.peer == "rtmlib" and (python is None or shutil.which(python) is None):
        raise InputError(
            f"rtmlib runs in an environment of its own, got {python}; make one with: cfpose-bench "
            f"peers install rtmlib FOLDER, and name its interpreter with --peer-python"
        )
    worker = open_worker(name, setting, python=python)
    assert isinstance(worker, ProcessWorker)
    theirs = worker.facts.versions.get("onnxruntime")
    ours = importlib.metadata.version("onnxruntime")
    if theirs is not None and theirs != ours:
        worker.close()
        raise InputError(
            f"{contestant.label} has onnxruntime {theirs}, expected {ours} as here: the comparison "
            f"would be one of versions; make its environment anew"
        )
    return worker


def facts_of(worker: ProcessWorker, contestant: Contestant) -> dict[str, Any]:
    """The facts of a runtime, for its row."""
    facts = worker.facts
    record = {"provider": facts.provider, "arithmetic": contestant.arithmetic}
    return record | ({"versions": dict(facts.versions)} if facts.versions else {})
