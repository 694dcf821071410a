"""A model under test in a process of its own (`ProcessWorker`) or in this one (`InlineWorker`).

Several runtimes in one process disturb each other's times: their threads spin. A worker waits on
its pipe while another one works, and reports the peak memory of its process alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cfpose_bench import peers
from cfpose_bench.models.base import Facts, poses_of
from cfpose_bench.models.open import ModelName, open_model
from cfpose_bench.peers.serve import memory_mb
from cfpose_sdk import errors
from cfpose_sdk.backends import Device
from cfpose_sdk.backends.base import ArithmeticPrecision
from cfpose_sdk.errors import BackendError, ImageError, InputError
from cfpose_sdk.files import check_model_file
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17, Skeleton


@dataclasses.dataclass(frozen=True)
class Setting:
    """The options that all workers of a run share."""

    device: Device = "auto"
    threads: int = 1
    cpus: tuple[int, ...] = ()  # the worker stays on them; empty: wherever it likes
    find: bool = False  # whether it must detect the people
    detector: str | None = None  # the detector's file; None is the bundled finder
    flip_test: bool = False
    precision: ArithmeticPrecision = "f32"  # OpenVINO: of the pose network's arithmetic


class Worker(Protocol):
    """An opened model under test, in this process or in one of its own; also a PoseModel."""

    name: ModelName
    facts: Facts

    def predict(self, image: Any, /, boxes: Any = None) -> Poses:
        """As PoseModel.predict. Raises ImageError for a photo that cannot be read."""
        ...

    def memory(self) -> dict[str, float | None]:
        """Megabytes (10⁶ bytes): peak_rss of the process, gpu."""
        ...

    def close(self) -> None:
        """End the worker, and free the model."""
        ...


class InlineWorker:
    """A model in this process; for debugging and tests."""

    def __init__(self, name: ModelName, setting: Setting) -> None:
        if name.adapter is not None:
            raise InputError(f"--model {name.text} needs a process of its own; omit --in-process")
        self.name = name
        self._opened = open_model(
            name,
            find=setting.find,
            detector=setting.detector,
            device=setting.device,
            threads=setting.threads,
            flip_test=setting.flip_test,
            precision=setting.precision,
        )
        self.facts = self._opened.facts

    def predict(self, image: Any, /, boxes: Any = None) -> Poses:
        """As the model's own, without the frame."""
        return dataclasses.replace(self._opened.model.predict(image, boxes=boxes), image=None)

    def memory(self) -> dict[str, float | None]:
        """Of this whole process."""
        return memory_mb()

    def close(self) -> None:
        """Free the model."""
        self._opened.close()


class ProcessWorker:
    """A model in a child process that answers JSON lines."""

    def __init__(self, name: ModelName, setting: Setting, python: str | None = None) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the worker)
        limit = str(setting.threads)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        self._process = subprocess.Popen(
            _command(name, setting, python),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={**os.environ, **dict.fromkeys(names, limit)},
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        try:
            answer = self._read()["ready"]
        except BaseException:
            self.close()
            raise
        tables = answer.get("skeleton")
        skeleton = COCO_17 if tables is None else _skeleton(tables)
        self.facts = Facts(
            name=name.label,
            skeleton=skeleton,
            precision=answer.get("precision"),
            provider=answer.get("provider"),
            size_wh=tuple(answer["size_wh"]) if answer.get("size_wh") else None,
            versions=answer.get("versions", {}),
            is_peer=name.peer is not None,
            one_stage=answer.get("one_stage", False),
            needs_boxes=name.adapter is not None,
            flips_inside=answer.get("flips_inside", False),
            calibration=tuple(answer.get("calibration", (1.0, 0.0))),
        )

    def predict(self, image: Any, /, boxes: Any = None) -> Poses:
        """Poses of the photo at a path."""
        given = None if boxes is None else np.asarray(boxes, dtype=np.float64).tolist()
        answer = self.ask({"do": "predict", "image": str(image), "boxes": given})
        if "unreadable" in answer:
            raise ImageError(answer["unreadable"])
        try:
            return poses_of(answer, self.facts.skeleton)
        except ValueError as error:
            raise BackendError(
                f"{self.name.label}: its answer is no set of poses ({error})"
            ) from error

    def memory(self) -> dict[str, float | None]:
        """Of the worker's process alone."""
        return self.ask({"do": "memory"})

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()  # it holds nothing that must be saved
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The process's answer to one question of `peers/serve.py`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise self._ended() from error
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind, message = answer["error"]
            known = getattr(errors, kind, None)
            if isinstance(known, type) and issubclass(known, errors.CfposeError):
                raise known(message)
            raise BackendError(f"{self.name.label}: {kind}: {message}")
        return answer

    def _ended(self) -> BackendError:
        code = self._process.wait()
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().splitlines()[-3:]
        return BackendError(
            f"{self.name.label}: its process ended with code {code}; it said last: "
            f"{' | '.join(last)}"
        )


def open_worker(
    name: ModelName, setting: Setting, *, python: str | None = None, in_process: bool = False
) -> Worker:
    """Open a model to measure; `python` is the interpreter of a peer's own environment."""
    check_model_file(name.path)
    if in_process:
        return InlineWorker(name, setting)
    return ProcessWorker(name, setting, python)


def _command(name: ModelName, setting: Setting, python: str | None) -> Sequence[str]:
    shared = {**dataclasses.asdict(setting), "cpus": list(setting.cpus)}
    if name.adapter is None:
        options = json.dumps({**shared, "model": name.text})
        return [sys.executable, "-m", "cfpose_bench.models.serving", options]
    options = json.dumps({**shared, "path": str(name.path)})
    served = Path(peers.__file__).parent / "serve.py"
    return [python or sys.executable, str(served), str(name.adapter), options]


def _skeleton(tables: Mapping[str, Any]) -> Skeleton:
    return Skeleton(
        keypoints=tuple(tables["keypoints"]),
        limbs=tuple((a, b) for a, b in tables["limbs"]),
        flip_pairs=tuple((a, b) for a, b in tables["flip_pairs"]),
        oks_sigmas=tuple(tables["oks_sigmas"]),
    )
