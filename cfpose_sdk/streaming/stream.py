"""Poses of a video or camera, frame by frame; decoding, detector and pose network overlap.

    source ─ thread: decode ─ [prefetch] ─ thread: detect people ─ [prefetch] ─ caller: poses,
    ids, smoothing

Each bracket holds at most `prefetch` frames, so that memory stays bounded however long the source.
With `batch_frames` the caller's thread takes several frames of a file at once through the pose
network.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self, get_args

from cfpose_sdk.arrays import GpuImage
from cfpose_sdk.detectors.base import TimedDetections
from cfpose_sdk.errors import InputError
from cfpose_sdk.media.frames import Footage, Frame, Item, Unread
from cfpose_sdk.media.image import Image
from cfpose_sdk.results import Poses
from cfpose_sdk.streaming.prefetch import Prefetcher
from cfpose_sdk.streaming.smoothing import Smoother, SmoothOptions
from cfpose_sdk.streaming.tracking import Tracker, TrackOptions, carried_boxes

Broken = Literal["warn", "raise"]
_PREFETCH = 4
_GROUP_BYTES = 3 << 24  # of the frames that wait together: 8 of 1920 x 1080


class Engine(Protocol):
    """The two steps of an estimator that a stream runs."""

    @property
    def detect(self) -> Callable[[Image | GpuImage], TimedDetections]: ...

    def poses(
        self, frames: Sequence[Frame], people: Sequence[TimedDetections]
    ) -> Sequence[Poses]: ...


@dataclass(frozen=True)
class StreamOptions:
    """How a stream runs; see `PoseEstimator.stream`. Raises InputError for a bad value."""

    prefetch: int | None = None
    detect_every: int = 1
    track: bool | TrackOptions = False
    smooth: bool | SmoothOptions = False
    broken: Broken = "warn"
    reconnect_s: float = 0.0
    batch_frames: int = 1

    def __post_init__(self) -> None:
        if self.batch_frames < 1:
            raise InputError(f"batch_frames must be 1 or more, got {self.batch_frames}")
        if self.prefetch is not None and self.prefetch < 0:
            raise InputError(f"prefetch must be 0 frames or more, got {self.prefetch}")
        if self.detect_every < 1:
            raise InputError(f"detect_every must be 1 or more, got {self.detect_every}")
        if not self.reconnect_s >= 0:  # NaN is not
            raise InputError(f"reconnect_s must be 0 seconds or more, got {self.reconnect_s}")
        if self.broken not in get_args(Broken):
            raise InputError(f"broken must be one of {get_args(Broken)}, got {self.broken!r}")

    @property
    def tracker(self) -> Tracker | None:
        """A new tracker where ids are wanted; smoothing needs them."""
        if self.track is False and self.smooth is False:
            return None
        return Tracker(self.track if isinstance(self.track, TrackOptions) else None)

    @property
    def smoother(self) -> Smoother | None:
        """A new smoother where one is wanted."""
        if self.smooth is False:
            return None
        return Smoother(self.smooth if isinstance(self.smooth, SmoothOptions) else None)


# an item, its people (None: the detector did not run, boxes come from the last poses), and whether
# a sequence begins there
Step = tuple[Item, TimedDetections | None, bool]
Response = Callable[[InputError], None]


class PoseStream:
    """Iterates over Poses in the order of the frames. `close`, the end of a `with` block, or
    dropping the last reference stops the threads and frees the source.
    """

    def __init__(
        self,
        engine: Engine,
        footage: Footage,
        options: StreamOptions,
        on_broken: Response | None = None,
    ) -> None:
        self.footage = footage
        broken = on_broken or (_warn if options.broken == "warn" else _raise)
        # a generator without a reference to this object: dropping the one ends the other
        self._results = _poses(engine, footage, options, broken)

    def __iter__(self) -> Iterator[Poses]:
        return self

    def __next__(self) -> Poses:
        return next(self._results)

    def close(self) -> None:
        """Stop; a second call does nothing."""
        never_started = inspect.getgeneratorstate(self._results) == inspect.GEN_CREATED
        self._results.close()
        if never_started:
            self.footage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_results"):
            self.close()


def _poses(
    engine: Engine, footage: Footage, options: StreamOptions, broken: Response
) -> Generator[Poses, None, None]:
    threads: list[Prefetcher[Item] | Prefetcher[Step]] = []
    tracker, smoother = options.tracker, options.smoother
    last: Poses | None = None
    most = 1 if footage.live else options.batch_frames
    try:
        for group in _groups(_steps(engine, footage, options, threads), most):
            done = _posed(engine, group, last)
            group.clear()  # lets the memory of the frames go, one by one
            while done:
                poses, begins = done.popleft()
                if isinstance(poses, InputError):
                    broken(poses)
                    continue
                if begins and tracker is not None:
                    tracker.forget()
                if begins and smoother is not None:
                    smoother.forget()
                last = replace(poses, image=None)
                if tracker is not None:
                    poses = tracker.update(poses)
                if smoother is not None:
                    poses = smoother.update(poses)
                yield poses
                del poses
    finally:
        for thread in threads:  # the reader first: the detector then sees the end of its frames
            thread.close()
        if not any(thread.alive for thread in threads):
            footage.close()


def _groups(steps: Iterator[Step], most: int) -> Iterator[list[Step]]:
    """Up to `most` steps at a time; the boxes of a step without people come from the one before it,
    so that it begins a group. What `steps` raises is raised after the steps before it.
    """
    group: list[Step] = []
    held = 0
    try:
        for step in steps:
            if group and not isinstance(step[0], Unread) and step[1] is None:
                yield group
                group, held = [], 0
            group.append(step)
            held += 0 if isinstance(step[0], Unread) else math.prod(step[0].image.shape)  # uint8
            del step
            if len(group) >= most or held >= _GROUP_BYTES:
                yield group
                group, held = [], 0
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


def _posed(
    engine: Engine, group: Sequence[Step], last: Poses | None
) -> deque[tuple[Poses | InputError, bool]]:
    """Poses of each step in order, or why there are none; and whether a sequence begins there."""
    frames, people = [], []
    for item, found, _ in group:
        if isinstance(item, Unread):
            continue
        if found is None and last is not None:  # the group's first
            found = TimedDetections(carried_boxes(last), 0.0)
        frames.append(item)
        people.append(found or engine.detect(item.image))
    done: Iterator[Poses | InputError]
    try:
        done = iter(engine.poses(frames, people))
    except InputError:
        done = iter([_alone(engine, *each) for each in zip(frames, people, strict=True)])
    return deque(
        (item.error if isinstance(item, Unread) else next(done), begins)
        for item, _, begins in group
    )


def _alone(engine: Engine, frame: Frame, people: TimedDetections) -> Poses | InputError:
    try:
        return engine.poses([frame], [people])[0]
    except InputError as error:
        return error


def _steps(
    engine: Engine,
    footage: Footage,
    options: StreamOptions,
    threads: list[Prefetcher[Item] | Prefetcher[Step]],
) -> Iterator[Step]:
    """Items with their people, by two threads (which it adds to `threads`) or by the caller."""
    ahead = options.prefetch
    if ahead is None:
        ahead = _PREFETCH if footage.own else 0
    if ahead == 0:
        return _detected(engine, footage.items, options.detect_every)
    read = Prefetcher(footage.items, ahead, "cfpose-read")
    threads.append(read)
    detected = Prefetcher(_detected(engine, read, options.detect_every), ahead, "cfpose-find")
    threads.append(detected)
    return detected


def _detected(engine: Engine, items: Iterator[Item], every: int) -> Iterator[Step]:
    """Every item; the detector runs on every n-th frame of a sequence."""
    frames, before = 0, None
    for item in items:
        if isinstance(item, Unread):
            yield item, None, False
            continue
        sequence = _sequence(item)
        begins = sequence != before or item.number == 0
        frames = 0 if begins else frames + 1
        yield item, engine.detect(item.image) if frames % every == 0 else None, begins
        before = sequence


def _sequence(frame: Frame) -> tuple[object, ...]:
    """Equal for neighbours of one sequence: a caller's arrays, frames of a video, or photos of one
    size, such as extracted frames. A camera that was lost begins another.
    """
    if frame.name is None:
        return ("arrays",)
    video = ("frames", frame.take)
    return video if frame.number is not None else ("photos", *frame.image.shape)


def _warn(error: InputError) -> None:
    warnings.warn(f"{error} (skipped)", RuntimeWarning, stacklevel=4)


def _raise(error: InputError) -> None:
    raise error
