"""How fast are files, streams and threads? Ratios of turns that follow each other in one run.

python studies/throughput.py files PHOTOS [--before OTHER/bin/cfpose]  # a folder of 500 or more
python studies/throughput.py video CLIP [--before OTHER/bin/cfpose]
python studies/throughput.py waiting [MODEL] [--rounds N]  # threads that wait: asleep, or spinning

`files` and `video` time the commands of this environment as whole processes, start-up included,
and compare them with `cfpose predict --latency`, which poses one frame after the other with all
cores; `--before` adds the same command of another environment. Memory is the largest single
process's. Each figure is the median over rounds of a ratio within the round. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from cfpose_sdk.backends import RuntimeOptions
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import demo_photos
from cfpose_sdk.media.image import read_image

HERE = str(Path(sys.executable).parent / "cfpose")
CLIENTS, FRAMES = 8, 48
Turn = tuple[float, float, float]  # seconds by the clock, CPU seconds, MB


def process(command: Sequence[str]) -> Turn:
    """One process and what it started, until it ended."""
    start = time.perf_counter()
    with open(os.devnull, "wb") as nowhere:
        child = subprocess.Popen(command, stdout=nowhere)
        _, status, used = os.wait4(child.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):  # 1: a photo could not be read
        sys.exit(f"{command} failed")
    seconds = time.perf_counter() - start
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000


def turns(contestants: Mapping[str, Callable[[], Turn]], rounds: int) -> None:
    """Print each one's figures against the first one's."""
    taken: dict[str, list[Turn]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken[name].append(contestants[name]())
    base = taken[names[0]]
    print(f"{'':32s} {'rate':>6s} {'CPU':>6s} {'MB':>6s}   rates of the rounds")
    for name, own in taken.items():
        rates = [b[0] / o[0] for b, o in zip(base, own, strict=True)]
        cpu = statistics.median(o[1] / b[1] for b, o in zip(base, own, strict=True))
        memory = max(turn[2] for turn in own)
        listed = " ".join(f"{rate:.2f}" for rate in rates)
        print(f"{name:32s} {statistics.median(rates):6.2f} {cpu:6.2f} {memory:6.0f}   {listed}")


def files(sources: str, before: str | None, rounds: int, *, video: bool) -> None:
    """`cfpose predict`, and for photos `cfpose bulk`, against one frame after the other."""
    with tempfile.TemporaryDirectory() as folder:

        def predict(command: str, *options: str) -> Callable[[], Turn]:
            line = [command, "predict", sources, "--json", f"{folder}/poses.json", *options]
            return lambda: process(line)

        def bulk() -> Turn:
            shutil.rmtree(f"{folder}/bulk", ignore_errors=True)
            return process([HERE, "bulk", sources, "--out", f"{folder}/bulk"])

        contestants = {"predict --latency": predict(HERE, "--latency"), "predict": predict(HERE)}
        if not video:
            contestants["bulk"] = bulk
        if before is not None:
            contestants["predict, before"] = predict(before)
        turns(contestants, rounds)


def waiting(model: str | None, rounds: int) -> None:
    """One photo, a stream and eight clients, with threads that sleep and threads that spin."""
    photo = read_image(demo_photos() / "street.jpg")
    frames = [photo] * FRAMES
    opened = {
        name: PoseEstimator(model, options=RuntimeOptions(spin=spin))
        for name, spin in (("asleep", False), ("spinning", True))
    }

    def timed(work: Callable[[], object]) -> Turn:
        start, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - start, time.process_time() - cpu, 0.0

    def clients(estimator: PoseEstimator) -> object:
        with ThreadPoolExecutor(CLIENTS) as pool:
            return list(pool.map(estimator.predict, frames))

    boxes = {n: e.predict(photo).boxes[:1] for n, e in opened.items()}  # and all is warm
    cases: dict[str, Callable[[str], object]] = {
        "one person, box given": lambda n: [opened[n].predict(photo, boxes[n]) for _ in frames],
        "a photo": lambda n: [opened[n].predict(photo) for _ in range(8)],
        "a stream": lambda n: list(opened[n].stream(frames)),
        f"{CLIENTS} clients": lambda n: clients(opened[n]),
    }
    for case, work in cases.items():
        print(case)
        turns({name: partial(timed, partial(work, name)) for name in opened}, rounds)


def main() -> int:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=("files", "video", "waiting"))
    parser.add_argument("subject", nargs="?", help="photos, a clip, or a model")
    parser.add_argument("--before", help="another environment's cfpose")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.question == "waiting":
        waiting(given.subject, given.rounds)
    elif given.subject is None:
        parser.error("give a folder of photos or a clip")
    else:
        files(given.subject, given.before, given.rounds, video=given.question == "video")
    return 0


if __name__ == "__main__":
    sys.exit(main())
