"""One setting in a process of its own: both networks opened, and calls timed when it is asked.

`python -c "from cfpose_sdk.tuning.trial import main; main()" JOB`, a job as JSON; `Trial` starts
it. It answers a JSON line for each JSON line, and ends with its standard input.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_sdk.backends import open_backend
from cfpose_sdk.backends.tuned import Setting, opened, setting_of
from cfpose_sdk.detectors.base import Detections, PersonFinder
from cfpose_sdk.errors import BackendError, CfposeError, InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.media.image import Image, read_image
from cfpose_sdk.tuning.workplace import Workplace, end

_RUN = "import sys; from cfpose_sdk.tuning.trial import main; sys.exit(main())"
TURN_S = 0.5  # how long a turn's timed calls last, about
MOST, LEAST = 40, 3  # passes of a turn


@dataclass(frozen=True)
class Job:
    """What is timed: the photos, the model, and how many people each is to have.

    `people` None: as many as the finder finds.
    """

    model: Path
    graphs: Path  # the folder of lower-precision graphs
    photos: tuple[Path, ...]
    people: int | None = None


@dataclass(frozen=True)
class Turn:
    """The times of one turn: milliseconds a photo, of each pass over all photos."""

    ms: tuple[float, ...]
    memory_mb: float | None  # peak of the process so far, in 10⁶ bytes; None where not told

    @property
    def best_ms(self) -> float:
        """The fastest pass: what else the machine does disturbs it least."""
        return min(self.ms)

    @property
    def median_ms(self) -> float:
        """Of its passes."""
        return float(np.median(self.ms))


class Trial:
    """A setting opened in a child process. Raises BackendError where it does not open or run."""

    def __init__(self, setting: Setting, job: Job, work: Workplace) -> None:
        self.setting = setting
        words = {
            "setting": dataclasses.asdict(setting),
            "model": str(job.model),
            "graphs": str(job.graphs),
            "photos": [str(photo) for photo in job.photos],
            "people": job.people,
        }
        self._log = tempfile.TemporaryFile(dir=work.folder)  # noqa: SIM115  (lives as it does)
        self._child = subprocess.Popen(
            [sys.executable, "-c", _RUN, json.dumps(words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=work.environment,
            start_new_session=True,
        )
        try:
            self.found: list[int] = self._answer()["people"]  # in each photo
        except BaseException:
            self.close()
            raise

    def turn(self) -> Turn:
        """Time some passes over the photos, after one that is not counted."""
        answer = self._ask({"do": "time"})
        return Turn(tuple(answer["ms"]), answer["memory_mb"])

    def boxes(self) -> dict[str, list[list[float]]]:
        """The finder's boxes of each photo, by the photo's file name."""
        found: dict[str, list[list[float]]] = self._ask({"do": "find"})["boxes"]
        return found

    def close(self) -> None:
        """End the process."""
        end(self._child)
        self._log.close()

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
        except OSError:
            pass  # it has ended; what it said last is read below
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            code = self._child.wait()
            self._log.seek(0)
            last = self._log.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise BackendError(f"{self.setting.name}: its process ended with {code}: {last}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BackendError(f"{self.setting.name}: {answer['error']}")
        return answer


class CountedFinder:
    """A finder whose people are repeated from the best, or cut, to exactly so many."""

    def __init__(self, finder: PersonFinder, people: int | None) -> None:
        self._finder, self._people = finder, people

    def __call__(self, image: Image) -> Detections:
        found = self._finder(image)
        if self._people is None or not len(found):
            return found
        kept = np.resize(np.arange(len(found)), self._people)
        return Detections(found.boxes[kept], found.scores[kept])


class Timed:
    """The opened networks and the decoded photos of a job."""

    def __init__(self, setting: Setting, job: Job, opening: ExitStack) -> None:
        files, threads = opened(setting, job.model, job.graphs), setting.threads
        pose = opening.enter_context(
            open_backend(
                files.model, device=setting.pose.device, threads=threads, options=files.options
            )
        )
        finder = opening.enter_context(
            PersonFinder(files.finder, device=setting.finder.device, threads=threads)
        )
        self._finder = CountedFinder(finder, job.people)
        self._estimator = opening.enter_context(PoseEstimator(pose, detector=self._finder))
        self._photos = {photo.name: read_image(photo) for photo in job.photos}

    def people(self) -> list[int]:
        """How many people are posed in each photo."""
        return [len(self._estimator.predict(photo)) for photo in self._photos.values()]

    def boxes(self) -> dict[str, list[list[float]]]:
        """Of each photo."""
        return {name: self._finder(photo).boxes.tolist() for name, photo in self._photos.items()}

    def turn(self) -> list[float]:
        """Milliseconds a photo, of each pass."""
        first = self._pass_ms()
        passes = math.ceil(TURN_S * 1000 / max(first * len(self._photos), 0.01))
        return [self._pass_ms() for _ in range(min(MOST, max(LEAST, passes)))]

    def _pass_ms(self) -> float:
        start = time.perf_counter()
        for photo in self._photos.values():
            self._estimator.predict(photo)
        return (time.perf_counter() - start) * 1000 / len(self._photos)


def main(argv: Sequence[str] | None = None) -> int:
    """Answer until the standard input ends."""
    words = json.loads((sys.argv[1:] if argv is None else argv)[0])
    job = Job(
        Path(words["model"]),
        Path(words["graphs"]),
        tuple(Path(photo) for photo in words["photos"]),
        words["people"],
    )
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(answer: Mapping[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    with ExitStack() as opening:
        try:
            timed = Timed(setting_of(words["setting"]), job, opening)
            say({"people": timed.people()})
            for line in sys.stdin:
                if json.loads(line)["do"] == "find":
                    say({"boxes": timed.boxes()})
                else:
                    say({"ms": timed.turn(), "memory_mb": _memory_mb()})
        except CfposeError as error:
            say({"error": str(error)})
            return 2
    return 0


def _memory_mb() -> float | None:
    # where it is there: ru_maxrss starts at the size of the process that started this one
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def check_people(found: Sequence[int], people: int | None) -> None:
    """Raise InputError where nobody was found in the photos, or in one that must have people."""
    if not sum(found):
        raise InputError("the finder sees nobody in these photos; give photos of people")
    if people is not None and not all(found):
        raise InputError(
            f"the finder sees nobody in {found.count(0)} of {len(found)} photos, and --people "
            f"{people} repeats whom it sees; leave those photos out"
        )
