"""The whole of `cfpose tune`: prove, time in turns, choose, and write the tuned file."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cfpose_sdk.backends.bundled import BUNDLED_MODEL
from cfpose_sdk.backends.tuned import (
    ROOM,
    Setting,
    Way,
    plain,
    record_of,
    signed,
    tuned_file,
)
from cfpose_sdk.errors import BackendError, InputError, require
from cfpose_sdk.files import cache_folder, check_model_file, demo_photos, shown, write_file
from cfpose_sdk.media.frames import expand, is_video
from cfpose_sdk.tuning.proofs import Proofs, ProvenWay
from cfpose_sdk.tuning.trial import Job, Trial, Turn, check_people
from cfpose_sdk.tuning.workplace import Workplace

DEFAULT = Setting()  # what `PoseEstimator()` does where nothing was tuned
MOST_PHOTOS = 16
FINALISTS = 4  # beside the default
ROUNDS = 8
FLOAT32 = Way().types
Report = Callable[[str], None]


@dataclass(frozen=True)
class TuneOptions:
    """What is tuned, and on what. `people` None: as many as the finder finds in each photo."""

    model: Path = BUNDLED_MODEL
    sources: tuple[str, ...] = ()  # photos, folders, globs; empty: the bundled photos
    people: int | None = None
    rounds: int = ROUNDS

    def __post_init__(self) -> None:
        for name in ("people", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be 1 or more, got {value}")
        check_model_file(self.model, "an exported pose model (.onnx)")
        if self.model.suffix.lower() != ".onnx":
            raise InputError(
                f"{shown(self.model)} is no .onnx file; tune chooses among runtimes of ONNX files"
            )


@dataclass(eq=False)
class Row:
    """A setting: what its proofs and its turns said."""

    setting: Setting
    drift: Mapping[str, Any] = field(default_factory=dict)  # of the pose network
    problem: str = ""  # why it cannot be chosen
    turns: list[Turn] = field(default_factory=list)
    ratio: tuple[float, float, float] | None = None  # median over rounds, and its quartiles

    @property
    def ms(self) -> float | None:
        """Median of the turns' medians."""
        return float(np.median([turn.median_ms for turn in self.turns])) if self.turns else None

    @property
    def memory_mb(self) -> float | None:
        """Peak of its process."""
        return self.turns[-1].memory_mb if self.turns else None

    @property
    def surely_faster(self) -> bool:
        """Whether three of four rounds were faster than the default's."""
        return self.ratio is not None and self.ratio[1] > 1.0

    @property
    def is_float32(self) -> bool:
        """Whether both networks compute in float32."""
        ways = (self.setting.pose, self.setting.finder)
        return all(way.types == "float32" and way.precision == "f32" for way in ways)


@dataclass(frozen=True)
class Outcome:
    """All rows, the default first, the chosen ones, and what was not tried."""

    rows: tuple[Row, ...]
    tuned: Row
    float32: Row
    left_out: Mapping[str, str]
    photos: int
    people: tuple[int, ...]  # posed in each photo
    file: Path


def tune(options: TuneOptions, report: Report) -> Outcome:
    """Measure, and write the tuned file; `report` is told of each step.

    Until the end nothing is kept. Raises InputError for photos that cannot be used, BackendError
    where the default runs on a GPU, MissingDependencyError without onnxruntime.
    """
    require("onnxruntime", extra="cpu", why="cfpose tune, which measures against it,")
    _check_cpu()
    photos = photos_of(options.sources)
    with Workplace(cache_folder(ROOM)) as work:
        job = Job(options.model.resolve(), work.folder, photos, options.people)
        report("opening the default: onnxruntime in float32")
        with closing(Trial(DEFAULT, job, work)) as trial:
            people = trial.found
            check_people(people, options.people)
            own = _proof_photos(trial, photos, work) if options.sources else None
        proofs = Proofs(work, job.model, own)
        rows = list(_rows(proofs, report))
        _screen(rows, job, work, report)
        finalists = _finalists(rows)
        _final(finalists, job, work, options.rounds, report)
        tuned, float32 = (_fastest(finalists, only) for only in (False, True))
        outcome = Outcome(
            tuple(rows), tuned, float32, proofs.left_out, len(photos), tuple(people),
            tuned_file(job.model, record_of(job.model)["model_sha256"]),
        )  # fmt: skip
        _keep(outcome, job, options, work)
    return outcome


def photos_of(sources: Sequence[str]) -> tuple[Path, ...]:
    """The first photos of the sources; none: the bundled ones. Raises InputError for a video."""
    given = sources or [str(demo_photos())]
    photos = [Path(path) for source in given for path in expand(source)]
    for path in photos:
        if is_video(path):
            raise InputError(f"{shown(path)} is a video, and tune reads photos; give photos")
    if not photos:
        raise InputError("there is no photo; give photos or folders with photos of people")
    return tuple(path.resolve() for path in dict.fromkeys(photos))[:MOST_PHOTOS]


def _check_cpu() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        raise BackendError(
            "this onnxruntime runs on a GPU, and tune chooses among CPU runtimes; for the GPU see: "
            "cfpose-export engine"
        )


def _proof_photos(trial: Trial, photos: Sequence[Path], work: Workplace) -> Path:
    """A folder of the caller's photos with the people that the finder sees, as proofs read it."""
    folder = work.folder / "photos"
    folder.mkdir()
    found = {name: boxes for name, boxes in trial.boxes().items() if boxes}
    for photo in photos:
        if photo.name in found:
            shutil.copyfile(photo, folder / photo.name)
    write_file(folder / "people.json", json.dumps(found))
    return folder


def _rows(proofs: Proofs, report: Report) -> Iterator[Row]:
    """Pairs of ways in one runtime, with every number of threads; the default first."""
    report("proving what the networks are in other runtimes and precisions")
    finders = list(proofs.ways("finder"))
    poses = []
    for pose in proofs.ways("pose"):
        report(f"{'refused' if pose.problem else 'proven'}: {pose.way.name}")
        poses.append(pose)
    lowered = {p.way.device for p in poses if p.way.types != FLOAT32 and not p.problem}
    for pose in poses:
        for finder in _partners(pose, finders, pose.way.device in lowered):
            problem = "; ".join(filter(None, (pose.problem, finder.problem)))
            for threads in _threads() if not problem else (None,):
                yield Row(Setting(pose.way, finder.way, threads), pose.drift, problem)


def _partners(pose: ProvenWay, finders: Sequence[ProvenWay], lowered: bool) -> Iterator[ProvenWay]:
    """The finder's ways that are tried beside one of the pose network, in its runtime.

    A refused network has one row, to say why. `lowered`: a lower precision of the pose network
    passed there, so that float32 needs no lower finder beside it.
    """
    near = [finder for finder in finders if finder.way.device == pose.way.device]
    passed = [finder for finder in near if not finder.problem]
    same = [finder for finder in near if finder.way.types == pose.way.types]
    if pose.problem:
        yield from (passed or near)[:1]
        return
    yield from (finder for finder in same if finder.problem)
    alike = any(not finder.problem for finder in same)
    for finder in passed:
        lower_beside_float32 = finder.way.types != FLOAT32 and not lowered
        if finder in same or not alike or lower_beside_float32:
            yield finder


def _threads() -> tuple[int | None, ...]:
    """The runtimes' own choice, all CPUs, and half of them where they are many."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = usable or 1
    return (None, count) if count < 4 else (None, count, count // 2)


def _screen(rows: Sequence[Row], job: Job, work: Workplace, report: Report) -> None:
    """One turn of each that passed."""
    passed = [row for row in rows if not row.problem]
    for number, row in enumerate(passed, 1):
        report(f"{number} of {len(passed)}: {row.setting.name}")
        try:
            with closing(Trial(row.setting, job, work)) as trial:
                row.turns.append(trial.turn())
        except BackendError as error:
            if row.setting == DEFAULT:
                raise
            row.problem = str(error)


def _finalists(rows: Sequence[Row]) -> list[Row]:
    """The default, the fastest of the others, and of those in float32 the fastest."""
    ranked = sorted((row for row in rows[1:] if row.turns), key=lambda row: row.turns[0].best_ms)
    full = [row for row in ranked if row.is_float32][:1]
    best = ranked[:FINALISTS]
    return [rows[0], *best, *(row for row in full if row not in best)]


def _final(rows: Sequence[Row], job: Job, work: Workplace, rounds: int, report: Report) -> None:
    """Turns in rounds, in an order that rotates; ratios are taken within a round."""
    for row in rows:
        row.turns.clear()
    with ExitStack() as opening:
        trials = [opening.enter_context(closing(Trial(row.setting, job, work))) for row in rows]
        for round_ in range(rounds):
            report(f"round {round_ + 1} of {rounds}, {len(rows)} settings in turns")
            order = np.roll(np.arange(len(rows)), -round_)
            for place in order if round_ // len(rows) % 2 == 0 else order[::-1]:
                rows[place].turns.append(trials[place].turn())
    base = [turn.median_ms for turn in rows[0].turns]
    for row in rows:
        own = [turn.median_ms for turn in row.turns]
        ratios = [b / o for b, o in zip(base, own, strict=True)]
        low, middle, high = (float(q) for q in np.percentile(ratios, [25, 50, 75]))
        row.ratio = (middle, low, high)


def _fastest(rows: Sequence[Row], float32_only: bool) -> Row:
    """The fastest of those that surely beat the default, else the default."""
    sure = [r for r in rows[1:] if r.surely_faster and (r.is_float32 or not float32_only)]
    return max(sure, key=lambda row: row.ratio or (0.0,), default=rows[0])


def _keep(outcome: Outcome, job: Job, options: TuneOptions, work: Workplace) -> None:
    """Move the graphs that are needed and the file to their places: renames, nothing by halves."""
    row = outcome.tuned
    ratio = row.ratio[0] if row.ratio else 1.0
    people = (
        f"{options.people} people" if options.people else f"{np.mean(outcome.people):.1f} people"
    )
    record = {
        **record_of(job.model),
        "tuned": plain(row.setting),
        "float32": plain(outcome.float32.setting),
        "measured": {
            "date": datetime.date.today().isoformat(),
            "told": f"{ratio:.2f} times the default's speed at {people} a photo",
            "ratio": row.ratio,
            "ms": row.ms,
            "default_ms": outcome.rows[0].ms,
            "photos": outcome.photos,
            "people": list(outcome.people),
            "drift": dict(row.drift),
        },
    }
    part = write_file(work.folder / outcome.file.name, signed(record))
    ways = (row.setting.pose, row.setting.finder)
    old = _graphs(outcome.file)
    for graph in {way.graph for way in ways if way.graph}:
        os.replace(work.folder / graph, outcome.file.with_name(graph))
    os.replace(part, outcome.file)
    for graph in old - {way.graph for way in ways}:
        with suppress(OSError):
            outcome.file.with_name(graph).unlink()


def _graphs(file: Path) -> set[str]:
    """The graphs of an earlier tuned file of the model."""
    return {path.name for path in file.parent.glob(f"{file.stem}-*.onnx")}
