"""Killed at random moments: is a file half written, an input lost, a next run stuck?

Run: make soak, or python tests/long/faults.py [--points N] [--seed N] [NAME ...]. Each point starts
a command in a fresh folder and ends it with SIGKILL or SIGTERM, at a moment drawn from its start or
from its first file on. Then every output must be whole or absent, every input as it was, and the
same command must come to its end. After SIGTERM no part may lie about; after SIGKILL hidden ones
(.NAME.part) may. Prints a JSON report; exits 1 when something is wrong.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT / "examples" / "photos"
TIMEOUT_S = 900.0
SAID = 1500  # characters of what a command that failed said last
_START = (
    "import sys; from cfpose_sdk import commands; sys.exit(getattr(commands, sys.argv.pop(1))())"
)


@dataclass(frozen=True)
class Scenario:
    """One command in a folder with `in/`, which it reads, and `out/`, which it writes."""

    name: str
    command: Sequence[str]  # the entry point and its arguments, relative to the folder
    prepare: Callable[[Path], None]  # fills `in/`
    outputs: Sequence[str]  # below `out/`: whole or absent, and there at the end


@dataclass
class Report:
    """How often a scenario was ended by which signal, and what was wrong."""

    points: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def run_points(scenario: Scenario, points: int, rng: random.Random) -> Report:
    """End the command at so many moments; signals take turns."""
    report = Report()
    with tempfile.TemporaryDirectory() as name:
        place = _fresh(scenario, Path(name) / "whole")
        begun = time.monotonic()
        problem = _finish(scenario, place)
        lasts_s = time.monotonic() - begun
        if problem:
            report.wrong.append(f"{scenario.name}, not ended: {problem}")
            return report
        for point in range(points):
            number = (signal.SIGKILL, signal.SIGTERM)[point % 2]
            place = _fresh(scenario, Path(name) / f"{point}")
            before = _contents(place / "in")
            code, said = _end_at(scenario, place, number, lasts_s, rng)
            key = f"{number.name}, {'ended by it' if code else 'too late'}"
            report.points[key] = report.points.get(key, 0) + 1
            for problem in _problems(scenario, place, before, number, code, said):
                report.wrong.append(f"{scenario.name}, point {point}, {number.name}: {problem}")
            shutil.rmtree(place)
    return report


def _fresh(scenario: Scenario, place: Path) -> Path:
    (place / "in").mkdir(parents=True)
    (place / "out").mkdir()
    scenario.prepare(place / "in")
    return place


def _start(scenario: Scenario, place: Path) -> subprocess.Popen[bytes]:
    paths = [ROOT, ROOT / "training", ROOT / "export", ROOT / "benchmarks"]
    return subprocess.Popen(
        [sys.executable, "-c", _START, *scenario.command],
        cwd=place,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _finish(scenario: Scenario, place: Path) -> str:
    """Run to the end; what was wrong, or ""."""
    running = _start(scenario, place)
    _, said = running.communicate(timeout=TIMEOUT_S)
    if running.returncode:
        return f"code {running.returncode}: {said.decode(errors='replace').strip()[-SAID:]}"
    missing = [name for name in scenario.outputs if not (place / "out" / name).exists()]
    return f"{', '.join(missing)} is not there" if missing else "".join(_half_written(place))


def _end_at(
    scenario: Scenario, place: Path, number: int, lasts_s: float, rng: random.Random
) -> tuple[int, str]:
    """Start, send the signal after a drawn time, and wait; the exit code and the last words."""
    running = _start(scenario, place)
    end = time.monotonic() + lasts_s
    if rng.random() < 0.6:  # from the first file on: starting takes longer than the work
        while (
            time.monotonic() < end and running.poll() is None and not any((place / "out").iterdir())
        ):
            time.sleep(0.005)
        wait_s = rng.uniform(0, 0.3 * lasts_s)
    else:
        wait_s = rng.uniform(0, lasts_s)
    try:
        running.wait(wait_s)
    except subprocess.TimeoutExpired:
        running.send_signal(number)
    _, said = running.communicate(timeout=TIMEOUT_S)
    return running.returncode, said.decode(errors="replace").strip()[-SAID:]


def _problems(
    scenario: Scenario, place: Path, before: dict[str, bytes], number: int, code: int, said: str
) -> Iterator[str]:
    if code not in (0, -number, 128 + number):
        yield f"code {code}: {said}"
    yield from _half_written(place)
    if number == signal.SIGTERM and (parts := sorted(p.name for p in place.rglob(".*.part*"))):
        yield f"it left {', '.join(parts)}"
    if _contents(place / "in") != before:
        yield "an input changed"
    if again := _finish(scenario, place):
        yield f"the next run: {again}"


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _half_written(place: Path) -> Iterator[str]:
    """Outputs that are there and not whole."""
    for path in sorted((place / "out").rglob("*")):
        if not path.is_file() or path.name.startswith(".") or "work" in path.parts:
            continue
        try:
            _read(path)
        except Exception as error:  # each reader has errors of its own
            yield f"{path.name} is half written ({error})"


def _read(path: Path) -> None:
    """Raise unless a file can be read to its end."""
    import cv2

    suffix = path.suffix
    if suffix == ".json":
        json.loads(path.read_text())
    elif suffix == ".csv":
        rows = list(csv.reader(path.read_text().splitlines()))
        if len({len(row) for row in rows}) != 1:
            raise ValueError("rows of several lengths")
    elif suffix in (".png", ".jpg"):
        if cv2.imread(str(path)) is None:
            raise ValueError("no picture")
    elif suffix in (".avi", ".mp4"):
        video = cv2.VideoCapture(str(path))
        frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        if frames < 1 or not all(video.grab() for _ in range(frames)):
            raise ValueError("no whole video")
    elif suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "np") as tensors:
            list(tensors.keys())
    elif suffix == ".xml" and not path.read_text().rstrip().endswith("</net>"):
        raise ValueError("cut off")


def predicting(models: Sequence[str] = ()) -> Scenario:
    """`cfpose predict` over photos and a video into files of every kind."""

    def prepare(folder: Path) -> None:
        import cv2

        photo = cv2.imread(str(PHOTOS / "street.jpg"))
        for n in range(3):
            cv2.imwrite(str(folder / f"{n}.png"), photo[150:390, n : n + 320])
        writer = cv2.VideoWriter(
            str(folder / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (320, 240)
        )
        for n in range(40):
            writer.write(photo[150:390, n : n + 320].copy())
        writer.release()

    files = ["--json", "out/a.json", "--csv", "out/a.csv", "--coco", "out/coco.json"]
    command = ["cfpose", "predict", "in", "in/clip.avi", *files, "--save", "out/drawn", *models]
    return Scenario("predict", command, prepare, ("a.json", "a.csv", "coco.json", "drawn/clip.avi"))


def measuring(model: str = "default") -> Scenario:
    """`cfpose-bench` on the example photos, with finished predictions kept."""
    options = ["--dataset", "demo", "--limit", "3", "--model", model, "--in-process"]
    options += ["--rounds", "1", "--repeats", "0", "--threads", "1", "--resume"]
    files = ["--work", "out/work", "--json", "out/r.json", "--csv", "out/r.csv"]
    return Scenario("bench", ["bench", *options, *files], lambda _: None, ("r.json", "r.csv"))


def training() -> Scenario:
    """`cfpose-train stage1` on drawn people; a run that was ended goes on."""
    from tests.training.conftest import RECIPE, write_tiny_data

    def prepare(folder: Path) -> None:
        write_tiny_data(folder)
        (folder / "tiny.toml").write_text(RECIPE)

    options = ["--recipe", "in/tiny.toml", "--data-root", "in", "--out", "out", "--resume"]
    command = ["train", "stage1", *options, "--accelerator", "cpu", "--threads", "1"]
    return Scenario("train", command, prepare, ("student.safetensors", "log.csv"))


def exporting() -> Scenario:
    """`cfpose-export openvino`: one model in three files."""
    from cfpose_sdk.estimator import BUNDLED_MODEL

    def prepare(folder: Path) -> None:
        shutil.copy(BUNDLED_MODEL, folder / "m.onnx")

    command = ["export", "openvino", "in/m.onnx", "-o", "out/m.xml"]
    return Scenario("export", command, prepare, ("m.xml", "m.bin", "m.xml.json"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help="predict, bench, train, export")
    parser.add_argument("--points", type=int, default=200, help="of all commands together")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    kinds = {"predict": predicting, "bench": measuring, "train": training, "export": exporting}
    names = options.names or list(kinds)
    rng = random.Random(options.seed)
    report: dict[str, Any] = {}
    for name in names:
        done = run_points(kinds[name](), -(-options.points // len(names)), rng)
        report[name] = {"points": done.points, "wrong": done.wrong}
        print(f"{name}: {done.points}, {len(done.wrong)} wrong", file=sys.stderr)
    print(json.dumps(report, indent=1))
    return 1 if any(part["wrong"] for part in report.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
