"""`cfpose predict`: all sources through the estimator into all outputs, with progress."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import cv2

from cfpose_sdk.backends import Device
from cfpose_sdk.backends.foreign import adopted_file, split_preset
from cfpose_sdk.backends.tuned import Precision
from cfpose_sdk.cli.outputs import OutputFiles, Sink
from cfpose_sdk.commands import watched
from cfpose_sdk.detectors import DetectorOptions
from cfpose_sdk.errors import BackendError, InputError
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import shown, what_is_at
from cfpose_sdk.media.frames import Footage, Unread, expand, is_video, passed_by
from cfpose_sdk.media.image import Image
from cfpose_sdk.media.names import Names, base_name, distinct_names, is_photo_url, is_url
from cfpose_sdk.media.sources import open_source
from cfpose_sdk.streaming.stream import StreamOptions

_STOP_KEYS = (27, ord("q"))  # escape, q
Part = Path | str | int  # one photo or video, one URL, one camera


def predict(
    sources: Sequence[str],
    *,
    model: str | None,
    detector: str | None,
    device: Device,
    allow_fallback: bool,
    outputs: OutputFiles,
    streaming: StreamOptions,
    show: bool,
    finding: DetectorOptions | None = None,
    max_people: int | None = None,
    precision: Precision | None = None,
) -> int:
    """Poses of all SOURCEs of the command line into the files asked for; returns the exit code.

    Raises CfposeError when the models or the files cannot be opened.
    """
    # FFmpeg would print each damaged block of a video to stderr; cfpose reports what matters
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    parts = [part for source in sources for part in parts_of(source)]
    opened = [Path(file) for file in (model, detector) if file]
    outputs.check([part for part in parts if isinstance(part, Path)] + opened)
    for source in sources:
        _tell_passed_by(source)
    foreign = split_preset(model or "")
    with PoseEstimator(
        model if foreign is None else adopted_file(*foreign),
        detector=detector,
        device=device,
        allow_fallback=allow_fallback,
        detector_options=finding,
        max_people=max_people,
        precision=precision,
    ) as estimator:
        run = PredictRun(estimator, outputs.open(), streaming, show, style=outputs.style)
        run.on_stdout = outputs.on_stdout
        return run.run(parts)


@dataclass
class PredictRun:
    """One run over all sources.

    Ctrl-C ends a camera or URL, and its files are finished. After Ctrl-C elsewhere, after an error,
    and when nothing could be read, no file of the run is left, except photos and videos that were
    done before. Photos are not smoothed.
    """

    estimator: PoseEstimator
    sinks: Sequence[Sink]
    options: StreamOptions
    show: bool = False
    frames: int = 0
    failed: int = 0  # sources that could not be read, or not to their end
    style: Mapping[str, Any] = field(default_factory=dict)  # of --show: options of Poses.plot
    on_stdout: bool = False  # an output file is the standard output: lines go to stderr
    names: Names = field(default_factory=dict)  # of the sources, no two alike

    def run(self, sources: Sequence[Part | Unread]) -> int:
        """The exit code: 0 every source was read to its end, 1 some were not, 2 none could be read.

        Raises CfposeError when a sink cannot be written to or a window cannot be opened.
        """
        live = False
        self.names = distinct_names(s for s in sources if isinstance(s, str | Path))
        try:
            for group in _groups(sources):
                if isinstance(group, Unread):
                    self._complain(group.error)
                    continue
                live = _is_live(group[0])
                if not self._run_group(group):
                    break
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and live:
                self._finish()
            else:
                self._abandon()
            raise
        if self.failed and not self.frames:
            self._abandon()
        else:
            self._finish()
        if self.failed:
            print(
                f"cfpose: {self.failed} of {len(sources)} sources could not be read, or not to "
                f"their end",
                file=sys.stderr,
            )
        return 0 if not self.failed else 1 if self.frames else 2

    def _run_group(self, group: list[Part]) -> bool:
        """One video, or photos that share one stream; False when the viewer wants to stop."""
        video = not _is_photo(group[0])
        entries = [entry for entry in group if not isinstance(entry, int)]
        try:
            source, again_s = group[0] if video else entries, self.options.reconnect_s
            footage = open_source(source, names=self.names, reconnect_s=again_s)
        except InputError as error:
            self._complain(error)
            return True
        name = f"camera-{group[0]}" if isinstance(group[0], int) else base_name(group[0])
        for sink in self.sinks:
            sink.begin(name, footage, video)
        with Progress(name if video else "photos", footage.count) as line:
            going_on = self._pose_frames(footage, line, name if video else None)
        for sink in self.sinks:
            sink.end()
        return going_on

    def _pose_frames(self, footage: Footage, line: Progress, video: str | None) -> bool:
        failed_before, frames, people, spent_ms = self.failed, 0, 0, 0.0

        def complain(error: InputError) -> None:
            line.clear()
            self._complain(error)
            if video:  # however many of its frames are damaged
                self.failed = failed_before + 1

        options = self.options
        if not video:  # photos have no time stamps to smooth by
            options = replace(options, smooth=False)
        with self.estimator.open_stream(footage, options, complain) as stream:
            for poses in stream:
                self.frames, frames = self.frames + 1, frames + 1
                people, spent_ms = people + len(poses), spent_ms + poses.speed_ms["total"]
                for sink in self.sinks:
                    sink.add(poses)
                line.step()
                if not video:
                    line.clear()
                    self._say(f"{poses.source}: {_count(len(poses))}, {spent_ms:.1f} ms")
                    spent_ms = 0.0
                if self.show and not _show(poses.plot(**self.style), still=not video):
                    return False
        if video and frames:
            line.clear()
            each_ms = spent_ms / frames
            self._say(f"{video}: {frames} frames, {people} poses, {each_ms:.1f} ms a frame")
        return True

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr if self.on_stdout else sys.stdout)

    def _complain(self, error: InputError) -> None:
        self.failed += 1
        print(f"cfpose: {error}", file=sys.stderr)

    def _finish(self) -> None:
        for sink in self.sinks:
            sink.end()
            sink.finish()

    def _abandon(self) -> None:
        for sink in self.sinks:
            sink.abandon()


def parts_of(source: str) -> list[Part | Unread]:
    """A SOURCE of the command line → photos, videos, URLs, camera numbers; or an Unread."""
    if is_url(source):
        return [source]
    try:
        if source.isascii() and source.isdigit() and what_is_at(source) == "nothing":
            return [int(source)]
        return list(expand(source))
    except InputError as error:
        return [Unread(error)]


def _groups(sources: Sequence[Part | Unread]) -> Iterator[list[Part] | Unread]:
    """Photos that follow each other together, everything else alone."""
    photos: list[Part] = []
    for source in sources:
        if not isinstance(source, Unread) and _is_photo(source):
            photos.append(source)
            continue
        if photos:
            yield photos
            photos = []
        yield source if isinstance(source, Unread) else [source]
    if photos:
        yield photos


def _is_photo(source: Part) -> bool:
    return is_photo_url(source) or (isinstance(source, Path) and not is_video(source))


def _is_live(source: Part) -> bool:
    return isinstance(source, int) or (is_url(source) and not is_photo_url(source))


def _tell_passed_by(source: str) -> None:
    """One line about the files of a folder that are no photos by their names."""
    try:
        left = {} if is_url(source) else passed_by(source)
    except InputError:
        return  # said where it is read
    if left:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(left.items()))
        print(
            f"cfpose: {shown(source)}: only its photos are read; passed by: {kinds}",
            file=sys.stderr,
        )


def _count(people: int) -> str:
    return "1 person" if people == 1 else f"{people} people"


def _show(picture: Image, *, still: bool) -> bool:
    """Show one picture, a still until a key is hit; False when the viewer wants to stop."""
    try:
        cv2.imshow("cfpose", picture)
        return (cv2.waitKey(0 if still else 1) & 0xFF) not in _STOP_KEYS
    except cv2.error as error:
        raise BackendError(
            "--show needs a display and an OpenCV with windows; use --save, or replace "
            "opencv-python-headless by opencv-python"
        ) from error


_BAR_WIDTH = 30
_REDRAW_S = 0.1


class Progress:
    """`with Progress("clip.mp4", 340) as line: line.step()`. Prints nothing into a pipe or file."""

    def __init__(self, label: str, total: int | None, stream: TextIO | None = None) -> None:
        self._label, self._total = label, total
        self._stream = sys.stderr if stream is None else stream
        self._shown = watched(self._stream)
        self._width = 0
        self._begun = time.monotonic()
        self._drawn = 0.0
        self._done = 0

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        now = time.monotonic()
        if self._shown and (now - self._drawn >= _REDRAW_S or self._done == self._total):
            self._drawn = now
            text = self._text(now)
            # the blanks are for notebooks, which know no ESC [ K
            self._stream.write(f"\r\x1b[K{text:<{self._width}}")
            self._stream.flush()
            self._width = len(text)

    def clear(self) -> None:
        """Wipe the line, for something else to be printed there."""
        if self._shown and self._drawn:
            self._stream.write(f"\r{'':{self._width}}\r\x1b[K")
            self._stream.flush()

    def _text(self, now: float) -> str:
        rate = self._done / max(1e-6, now - self._begun)
        if not self._total:
            return f"{self._label}  {self._done}  {rate:.1f}/s"
        share = min(1.0, self._done / self._total)
        bar = "#" * round(share * _BAR_WIDTH)
        left = max(0, self._total - self._done) / rate
        return (
            f"{self._label}  [{bar:<{_BAR_WIDTH}}] {self._done}/{self._total}  {rate:.1f}/s  "
            f"{left:.0f} s left"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()
