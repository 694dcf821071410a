"""Run a pose model behind a pipe: a JSON line in, a JSON line out. Needs NumPy and OpenCV only.

    PYTHON serve.py ADAPTER.py '{"path": F, "device": D, "threads": N, "cpus": [0, 1]}'

runs an adapter in an environment of its own. The adapter file defines

    open_model(path, *, device, threads) -> model
    model.predict(image, boxes) -> (xy (N, K, 2), scores (N, K) in [0, 1])

with a BGR image and (N, 4) xyxy boxes, N ≥ 1, in pixels. A model that detects the people itself has
`one_stage = True`, gets boxes None, and returns (xy, scores, boxes (N, 4), box_scores (N,)).
Further attributes are optional: `facts`, a dict (precision, provider, versions), `spans_ms`, the
milliseconds of the last call by stage (crop, infer, post), else the whole call is `infer`, and
`find(image) -> (M, 4) boxes`, a detector of its own for comparisons of whole pipelines.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import cv2
import numpy as np

Record = dict[str, Any]
STAGES = ("read", "detect", "crop", "infer", "post")


class UnreadableError(Exception):
    """The photo cannot be read."""


class Served(Protocol):
    """The model behind the pipe: facts about it, and poses of a photo as plain values."""

    facts: Record

    def predict(self, image: str, boxes: Any) -> Record:
        """Poses of a photo; raises UnreadableError."""
        ...

    def prepared(
        self, image: str, boxes: Any, people: int
    ) -> AbstractContextManager[Callable[[], Record]]:
        """A call that poses `people` people of the photo, decoded once; it returns its stages.

        `boxes`: (people, 4), or None: the detections are repeated or cut to `people`.
        """
        ...


class Adapted:
    """A foreign model through its adapter."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.one_stage = bool(getattr(model, "one_stage", False))
        self.facts: Record = {"one_stage": self.one_stage, **getattr(model, "facts", {})}

    def predict(self, image: str, boxes: Any) -> Record:
        """Poses of the photo at a path, in (N, 4) or (N, 5) boxes."""
        start = time.perf_counter()
        frame = cv2.imread(image)
        if frame is None:
            raise UnreadableError(image)
        read = time.perf_counter()
        given = np.asarray([] if boxes is None else boxes, dtype=np.float64)
        given = given.reshape(len(given), -1) if len(given) else np.zeros((0, 5))
        scores = given[:, 4] if given.shape[1] == 5 else np.ones(len(given))
        if self.one_stage:
            xy, confidence, people, scores = self.model.predict(frame, None)
        elif len(given) == 0:  # no people: some models would take the whole photo instead
            xy, confidence, people = np.zeros((0, 0, 2)), np.zeros((0, 0)), given[:, :4]
        else:
            people = given[:, :4]
            xy, confidence = self.model.predict(frame, people)
        spent = (time.perf_counter() - read) * 1e3
        has_run = self.one_stage or len(given) > 0
        spans = dict(getattr(self.model, "spans_ms", {}) or {}) if has_run else {}
        spans = spans or {"infer": spent}
        speed = {**dict.fromkeys(STAGES, 0.0), "read": (read - start) * 1e3, **spans}
        return {
            "xy": np.asarray(xy, dtype=np.float64).tolist(),
            "confidence": np.asarray(confidence, dtype=np.float64).tolist(),
            "boxes": np.asarray(people, dtype=np.float64).tolist(),
            "box_scores": np.asarray(scores, dtype=np.float64).tolist(),
            "size_wh": [frame.shape[1], frame.shape[0]],
            "speed_ms": {**speed, "total": (read - start) * 1e3 + spent},
        }

    @contextmanager
    def prepared(self, image: str, boxes: Any, people: int) -> Iterator[Callable[[], Record]]:
        """As Served.prepared, for models that take boxes; without them, by the model's `find`."""
        frame = cv2.imread(image)
        if frame is None:
            raise UnreadableError(image)
        given = None if boxes is None else np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        find = getattr(self.model, "find", None)
        if given is None and find is None:
            raise ValueError("people are to be found, and this adapter has no `find`")

        def call() -> Record:
            start = time.perf_counter()
            chosen = given
            if chosen is None:
                assert find is not None
                detected = np.asarray(find(frame), dtype=np.float64).reshape(-1, 4)
                if len(detected) == 0:
                    raise ValueError(f"the detector found nobody in {image}")
                chosen = np.resize(detected, (people, 4))
            detect = (time.perf_counter() - start) * 1e3
            xy, _ = self.model.predict(frame, chosen)
            spans = dict(getattr(self.model, "spans_ms", {}) or {})
            return {"detect": detect, **spans, "people": len(xy)}

        yield call


def timed(served: Served, question: Record) -> Record:
    """Wall milliseconds of each of `repeats` calls on a decoded photo, after `warmup` others.

    `stages`: the times that each call reports by stage. `cpu_s`: CPU seconds of this process before
    and after, which tell how much its threads did between two questions.
    """
    began = time.process_time()
    with served.prepared(question["image"], question["boxes"], question["people"]) as call:
        for _ in range(question["warmup"]):
            call()
        spent, stages = [], []
        for _ in range(question["repeats"]):
            start = time.perf_counter()
            reported = call()
            spent.append((time.perf_counter() - start) * 1e3)
            stages.append(reported)
    return {"ms": spent, "stages": stages, "cpu_s": [began, time.process_time()]}


def pin(cpus: list[int], threads: int) -> None:
    """Keep this process and the threads that it will make on `cpus`, and OpenCV on `threads`."""
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    cv2.setNumThreads(threads)


def memory_mb() -> Record:
    """Peak resident memory of this process, and what it holds on the GPU (None without one)."""
    return {"peak_rss": _peak_rss_mb(), "gpu": _gpu_mb()}


def _peak_rss_mb() -> float | None:
    # ru_maxrss starts at the parent's size on Linux; VmHWM is this process's own
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return None
    peak = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _gpu_mb() -> float | None:
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.split(",") for line in done.stdout.splitlines() if line.count(",") == 1]
    mine = [float(used) for pid, used in rows if pid.strip() == str(os.getpid())]
    return sum(mine) * 1.048576 if mine else None


def serve(open_served: Callable[[], Served]) -> int:
    """Open the model, say so, and answer until the asker closes the pipe.

    Whatever libraries print goes to stderr; the answers have the original stdout for themselves.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        served = open_served()
    except Exception as error:  # whatever a foreign package raises is the asker's to report
        _say(answers, {"error": [type(error).__name__, str(error)]})
        return 1
    _say(answers, {"ready": served.facts})
    for line in sys.stdin:
        _say(answers, _answer(served, json.loads(line)))
    return 0


def _answer(served: Served, question: Record) -> Record:
    if question["do"] == "memory":
        return memory_mb()
    try:
        if question["do"] == "time":
            return timed(served, question)
        return served.predict(question["image"], question["boxes"])
    except UnreadableError as error:
        return {"unreadable": str(error)}
    except Exception as error:
        return {"error": [type(error).__name__, str(error)]}


def _say(answers: TextIO, record: Record) -> None:
    answers.write(json.dumps(record) + "\n")
    answers.flush()


def _adapted(adapter: str, options: Record) -> Adapted:
    pin(options["cpus"], options["threads"])
    spec = importlib.util.spec_from_file_location("adapter", adapter)
    if spec is None or spec.loader is None:
        raise ImportError(f"{adapter} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.open_model(options["path"], device=options["device"], threads=options["threads"])
    return Adapted(model)


if __name__ == "__main__":
    adapter_file, settings = sys.argv[1:]
    sys.exit(serve(lambda: _adapted(adapter_file, json.loads(settings))))
