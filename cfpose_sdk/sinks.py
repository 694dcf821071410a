"""Where poses go: JSON, CSV, COCO results, OpenPose files, pictures and videos.

A sink takes one frame at a time and holds none of them, so that long videos fit. Files appear
whole, at `finish`; after `abandon` nothing is left of them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cfpose_sdk.files import UnfinishedFile, write_file
from cfpose_sdk.frames import Footage
from cfpose_sdk.openpose import OpenPoseFormat, openpose_frame
from cfpose_sdk.pictures import write_picture
from cfpose_sdk.recording import VideoRecording
from cfpose_sdk.records import ROW_FIELDS
from cfpose_sdk.results import Poses

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Sink(Protocol):
    """`add` every frame, then `finish` or `abandon`."""

    def begin(self, name: str, footage: Footage, video: bool) -> None:
        """A new source follows: its name, what is known of it, and whether its frames are one."""

    def add(self, poses: Poses) -> None: ...

    def end(self) -> None:
        """The source ended."""

    def finish(self) -> None: ...

    def abandon(self) -> None: ...


class _FileSink:
    def __init__(self, path: str | Path) -> None:
        self._file = UnfinishedFile(path)

    def begin(self, name: str, footage: Footage, video: bool) -> None: ...

    def end(self) -> None: ...

    def finish(self) -> None:
        self._file.commit()

    def abandon(self) -> None:
        self._file.discard()


class _ListSink(_FileSink):
    """A JSON list with an item a line."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._before = "[\n"

    def extend(self, items: Iterable[Any]) -> None:
        for item in items:
            self._file.write(self._before + json.dumps(item, ensure_ascii=False, allow_nan=False))
            self._before = ",\n"

    def finish(self) -> None:
        self._file.write("[]\n" if self._before == "[\n" else "\n]\n")
        super().finish()


class JsonSink(_ListSink):
    """`Poses.to_dict` of every frame."""

    def add(self, poses: Poses) -> None:
        self.extend([poses.to_dict()])


class CocoSink(_ListSink):
    """COCO keypoint results of every person."""

    def add(self, poses: Poses) -> None:
        self.extend(poses.to_coco())


class CsvSink(_FileSink):
    """One row a person and joint."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._file.write(",".join(ROW_FIELDS) + "\n")

    def add(self, poses: Poses) -> None:
        text = io.StringIO()
        csv.DictWriter(text, ROW_FIELDS, lineterminator="\n").writerows(poses.rows())
        self._file.write(text.getvalue())


class OpenPoseSink(_ListSink):
    """One JSON list of frames, each with the name of its `image`."""

    def __init__(self, path: str | Path, layout: OpenPoseFormat) -> None:
        super().__init__(path)
        self._layout = layout

    def add(self, poses: Poses) -> None:
        self.extend([{"image": poses.source, **openpose_frame(poses, self._layout)}])


@dataclass
class _FolderSink:
    folder: Path
    taken: set[Path] = field(default_factory=set)

    def begin(self, name: str, footage: Footage, video: bool) -> None: ...

    def end(self) -> None: ...

    def finish(self) -> None: ...

    def abandon(self) -> None: ...

    def place(self, stem: str, ending: str) -> Path:
        """A path in the folder that no earlier file of this run has."""
        place, count = self.folder / f"{stem}{ending}", 1
        while place in self.taken:
            count += 1
            place = self.folder / f"{stem}-{count}{ending}"
        self.taken.add(place)
        return place


@dataclass
class OpenPoseFolderSink(_FolderSink):
    """One file a frame, NAME_keypoints.json, as OpenPose's `--write_json` makes them."""

    layout: OpenPoseFormat = "body25"
    _video: Path | None = None  # the video's part of the names: its frames are not remembered

    def begin(self, name: str, footage: Footage, video: bool) -> None:
        self._video = self.place(Path(name).stem, "") if video else None

    def add(self, poses: Poses) -> None:
        if self._video is None:
            place = self.place(Path(str(poses.source)).stem, "_keypoints.json")
        else:
            place = self._video.with_name(f"{self._video.name}-{poses.frame:06d}_keypoints.json")
        write_file(place, json.dumps(openpose_frame(poses, self.layout)))


@dataclass
class PictureSink(_FolderSink):
    """Drawn photos under their own names; a video becomes one video of its nominal fps and its
    size, made even.
    """

    covariance: bool = False
    _recording: VideoRecording | None = None

    def begin(self, name: str, footage: Footage, video: bool) -> None:
        if video:
            suffix = Path(name).suffix.lower()
            place = self.place(Path(name).stem, suffix if suffix in (".avi", ".mp4") else ".mp4")
            self._recording = VideoRecording(place, footage.fps)

    def add(self, poses: Poses) -> None:
        picture = poses.plot(covariance=self.covariance)
        if self._recording is not None:
            self._recording.add(picture)
            return
        name = Path(str(poses.source))
        suffix = name.suffix if name.suffix.lower() in _PICTURE_SUFFIXES else ".jpg"
        write_picture(self.place(name.stem, suffix), picture)

    def end(self) -> None:
        if self._recording is not None:
            self._recording.finish()
            self._recording = None

    def abandon(self) -> None:
        if self._recording is not None:
            self._recording.abandon()
            self._recording = None
