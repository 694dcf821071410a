"""Does it leak? Frames, open/close cycles, threads and processes, for longer than a test may take.

Run: make soak, or python tests/long/soak.py [--frames N] [--cycles N] [--predictions N]
[--processes N]. Prints a JSON report; exits 1 when memory grows, a thread, a process or a file
handle is left, or threads and processes differ or never answer.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.results import Poses

MAX_GROWTH_MB = 24.0  # between the medians of the second and the last quarter
PHOTO = Path(__file__).resolve().parents[2] / "examples" / "photos" / "street.jpg"
CLIP_FRAMES = 100
ANSWER_S = 120.0  # a child that has not answered by then hangs
Open = Callable[[], PoseEstimator]


def rss_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def handles() -> int:
    """Open file descriptors."""
    return len(os.listdir("/proc/self/fd"))


def growth_mb(samples: list[float]) -> float:
    """Growth after the first quarter, in which caches and arenas fill."""
    quarter = max(1, len(samples) // 4)
    early = np.median(samples[quarter : 2 * quarter] or samples[:1])
    return float(np.median(samples[-quarter:]) - early)


def write_clip(path: Path, frames: int = CLIP_FRAMES) -> Path:
    """The street photo, sliding."""
    photo = cv2.imread(str(PHOTO))
    if photo is None:
        raise SystemExit(f"{PHOTO} cannot be read")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (384, 288))
    for n in range(frames):
        writer.write(np.ascontiguousarray(photo[150:438, n : n + 384]))
    writer.release()
    return path


def soak_frames(open_estimator: Open, clip: Path, frames: int) -> dict[str, Any]:
    """Stream the clip again and again, tracked and smoothed, some streams dropped in the middle."""
    samples: list[float] = []
    seen = rounds = 0
    with open_estimator() as estimator:
        threads, files = threading.active_count(), handles()
        while seen < frames:
            rounds += 1
            for poses in estimator.stream(clip, smooth=True):
                seen += 1
                if seen % 20 == 0:
                    samples.append(rss_mb())
                if seen >= frames or (rounds % 5 == 0 and poses.frame == CLIP_FRAMES // 2):
                    break
            del poses
        gc.collect()
        left = {"threads": threading.active_count() - threads, "handles": handles() - files}
    return {"frames": seen, "growth_mb": growth_mb(samples), "rss_mb": samples[-1], "left": left}


def soak_cycles(open_estimator: Open, cycles: int) -> dict[str, Any]:
    """Open, predict, close."""
    image = cv2.imread(str(PHOTO))
    samples: list[float] = []
    with open_estimator() as estimator:  # runtimes keep one pool and some caches for good
        estimator.predict(image)
    gc.collect()
    threads, files = len(os.listdir("/proc/self/task")), handles()
    for _ in range(cycles):
        with open_estimator() as estimator:
            estimator.predict(image)
        samples.append(rss_mb())
    del estimator
    gc.collect()
    left = {
        "threads": len(os.listdir("/proc/self/task")) - threads,
        "handles": handles() - files,
    }
    return {"cycles": cycles, "growth_mb": growth_mb(samples), "rss_mb": samples[-1], "left": left}


def soak_threads(open_estimator: Open, threads: int, predictions: int) -> dict[str, Any]:
    """Mixed sizes from many threads, against one thread: exactly equal."""
    photo = cv2.imread(str(PHOTO))
    images = [photo[: 200 + 17 * n, : 250 + 23 * n] for n in range(12)]
    with open_estimator() as estimator:
        expected = [estimator.predict(image) for image in images]

        def work(start: int) -> int:
            wrong = 0
            for n in range(predictions):
                index = (start + n) % len(images)
                poses = estimator.predict(images[index])
                wrong += not (
                    np.array_equal(poses.xy, expected[index].xy)
                    and np.array_equal(poses.confidence, expected[index].confidence)
                    and np.array_equal(poses.boxes, expected[index].boxes)
                )
            return wrong

        with ThreadPoolExecutor(threads) as pool:
            wrong = sum(pool.map(work, range(threads)))
    return {"threads": threads, "predictions": threads * predictions, "different": wrong}


def soak_processes(open_estimator: Open, method: str, processes: int) -> dict[str, Any]:
    """Children of a process whose estimator is open and has worked.

    As documented: a forked one opens an estimator of its own, a spawned one gets the parent's
    pickled. Both give the parent's very results, and the parent's goes on.
    """
    context: Any = multiprocessing.get_context(method)
    resource_tracker.ensure_running()  # it keeps a handle for good
    image = cv2.imread(str(PHOTO))
    samples: list[float] = []
    wrong = silent = 0
    with open_estimator() as estimator:
        expected = estimator.predict(image)
        given = open_estimator if method == "fork" else estimator
        files = handles()
        for _ in range(processes):
            answer, line = context.Pipe(duplex=False)
            child = context.Process(target=_predict_in_child, args=(given, line))
            with warnings.catch_warnings():  # of a fork beside threads: that is what is tried
                warnings.simplefilter("ignore", DeprecationWarning)
                child.start()
            line.close()
            try:
                found = answer.recv() if answer.poll(ANSWER_S) else None
            except EOFError:  # it died
                found = ()
            silent += found is None
            if found is None:
                child.kill()
            else:
                wrong += not _same(found, expected)
            wrong += not _same(_arrays(estimator.predict(image)), expected)
            child.join()
            child.close()
            answer.close()
            samples.append(rss_mb())
        left = {
            "processes": len(multiprocessing.active_children()), "handles": handles() - files,
        }  # fmt: skip
    facts = {"processes": processes, "different": wrong, "silent": silent, "left": left}
    return {**facts, "growth_mb": growth_mb(samples)}


def _predict_in_child(given: Open | PoseEstimator, line: Connection) -> None:
    with given if isinstance(given, PoseEstimator) else given() as estimator:
        line.send(_arrays(estimator.predict(cv2.imread(str(PHOTO)))))


def _arrays(poses: Poses) -> tuple[Any, ...]:
    return poses.xy, poses.confidence, poses.boxes


def _same(found: tuple[Any, ...], expected: Poses) -> bool:
    pairs = zip(found, _arrays(expected), strict=True) if found else [(0, 1)]
    return all(np.array_equal(a, b) for a, b in pairs)


def failures(report: dict[str, dict[str, Any]]) -> list[str]:
    """What of the report is a leak or a difference."""
    found = []
    for part, facts in report.items():
        if facts.get("growth_mb", 0.0) > MAX_GROWTH_MB:
            found.append(f"{part}: memory grew by {facts['growth_mb']:.1f} MB")
        for kind, count in facts.get("left", {}).items():
            if count > 0:
                found.append(f"{part}: {count} {kind} left")
        if facts.get("different"):
            found.append(f"{part}: {facts['different']} results differ")
        if facts.get("silent"):
            found.append(f"{part}: {facts['silent']} processes never answered")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="exported model; default: the bundled one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--predictions", type=int, default=500, help="a thread")
    parser.add_argument("--processes", type=int, default=20, help="forked, and as many spawned")
    options = parser.parse_args()

    def open_estimator() -> PoseEstimator:
        return PoseEstimator(options.model, device=options.device, threads=1)

    with tempfile.TemporaryDirectory() as folder:
        clip = write_clip(Path(folder) / "clip.avi")
        report = {"frames": soak_frames(open_estimator, clip, options.frames)}
    report["cycles"] = soak_cycles(open_estimator, options.cycles)
    report["threads"] = soak_threads(open_estimator, options.threads, options.predictions)
    for method in ("fork", "spawn"):
        report[method] = soak_processes(open_estimator, method, options.processes)
    wrong = failures(report)
    print(json.dumps({**report, "failures": wrong}, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
