"""Ask what stands at a path, write files whole or not at all, SHA-256 of files and values.

Where OSError and ValueError are caught: Python raises ValueError for a path with a NUL character,
and its subclass UnicodeError for text that is not UTF-8.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TextIO

from cfpose_sdk.errors import ArtifactError, InputError

# of an artifact's metadata: where its ModelSpec or FinderSpec stands, as JSON
SPEC_KEY = "cfpose.spec"
FINDER_KEY = "cfpose.finder"
CACHE_VARIABLE = "CFPOSE_CACHE"
MODELS = Path(__file__).parent / "models"  # the folder of the bundled models
PHOTO_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm",
    ".tif", ".tiff", ".webp",
)  # fmt: skip
VIDEO_SUFFIXES = (
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip
Kind = Literal["file", "folder", "device", "nothing"]
_OWN_STREAM = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # Python's stand-ins for bytes of such a file name
_SUFFIX_SHOWN = 20  # letters
_NAME_SHOWN = 120  # letters of a path in a message


def demo_photos() -> Path:
    """The folder of the example photos: a checkout's `examples/photos`, else the wheel's copy."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "examples" / "photos"
    return checkout if checkout.is_dir() else package / "photos"


def cache_folder(room: str) -> Path:
    """A folder of the cache: below $CFPOSE_CACHE, else ~/.cache/cfpose. It need not be there."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return (Path(chosen) if chosen else Path.home() / ".cache" / "cfpose") / room


def digest(path: str | Path, *others: str | Path) -> str:
    """SHA-256 of a file; for several, the SHA-256 of their digests, one a line."""
    digests = []
    for each in (path, *others):
        with Path(each).open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if not others else sha256("\n".join(digests).encode())


def digest_of(record: Mapping[str, Any]) -> str:
    """SHA-256 of JSON-ready values, whatever the order of their keys."""
    return sha256(json.dumps(record, sort_keys=True).encode())


def sha256(data: bytes) -> str:
    """SHA-256 of bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def as_path(path: str | os.PathLike[str]) -> Path:
    """A path; of one whose own text is bytes, as os.scandir(b".") gives them, too.

    Raises InputError for no name at all.
    """
    if not os.fspath(path):
        raise InputError("an empty path was given; expected the name of a file or folder")
    return Path(os.fsdecode(path))


def what_is_at(path: str | os.PathLike[str]) -> Kind:
    """What a path leads to, through links: a file, a folder, a device (or FIFO), or nothing.

    Raises InputError where the file system does not answer: no permission, a name that is too
    long, links in a circle, a NUL character, no name at all.
    """
    as_path(path)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "nothing"
    except (OSError, ValueError) as error:
        raise InputError(f"{shown(path)} cannot be looked at: {_reason(error)}") from error
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "device"


def check_model_file(path: Path, expected: str = "a model file") -> None:
    """Raise ArtifactError unless a file is there and may be read."""
    try:
        kind = what_is_at(path)
    except InputError as error:
        raise ArtifactError(f"{error}; expected {expected}") from error
    if kind == "nothing":
        raise ArtifactError(f"{shown(path)} does not exist; expected {expected}")
    if kind == "folder":
        raise ArtifactError(
            f"{shown(path)} is a folder; a file of that name does not exist; expected {expected}"
        )
    if not os.access(path, os.R_OK):
        raise ArtifactError(f"{shown(path)} may not be read by this user; expected {expected}")


def shown(path: str | os.PathLike[str]) -> str:
    """A path as messages have it: what is not UTF-8 as U+FFFD, the middle of a long one cut out."""
    text = printable(os.fsdecode(path))
    half = _NAME_SHOWN // 2
    return text if len(text) <= 2 * _NAME_SHOWN else f"{text[:half]}…{text[-half:]}"


def printable(name: str) -> str:
    """A file name that every file and terminal accepts: what is not UTF-8 becomes U+FFFD."""
    return _NOT_UTF8.sub("\ufffd", name)


def check_outputs(outputs: Mapping[str, Path], sources: Iterable[Path] = ()) -> None:
    """Raise InputError unless each output can be written without harm, before any work begins.

    `outputs`: the option that asked for it → the file; folders that get files are for
    `check_output_folder`. `sources`: files that are read. Refused are an output that is a source or
    another output, a photo or video that is there, a folder, or a place that cannot be written.
    Devices and FIFOs may be outputs;
    of a link the file that it leads to counts.
    """
    read = {_identity(source): source for source in sources if _answers(source)}
    written: dict[object, str] = {}
    for option, path in outputs.items():
        kind = what_is_at(path)
        if kind == "folder":
            raise InputError(f"{option} {shown(path)} is a folder; expected the name of a file")
        if kind == "device" and os.path.realpath(path) == os.path.realpath(os.devnull):
            continue
        who = _identity(path)
        if who in read:
            raise InputError(
                f"{option} {shown(path)} is one of the sources, which would be overwritten; "
                f"choose another file"
            )
        if who in written:
            raise InputError(
                f"{option} {shown(path)} is the file of {written[who]}, too; give each its own"
            )
        if kind == "file" and path.suffix.lower() in PHOTO_SUFFIXES + VIDEO_SUFFIXES:
            raise InputError(
                f"{option} {shown(path)} is a photo or video, which would be overwritten; was a "
                f"file name left out before it?"
            )
        written[who] = option
        if kind != "device" and _stream_of(path) is None:
            _check_place(option, path, Path(os.path.realpath(path)).parent)


def check_command_outputs(options: Mapping[str, object], *names: str) -> None:
    """`check_outputs` of a command's options: those called `names` are files that it writes.

    Files among the others, in lists too, are its sources. An output that is not given is none.
    """
    outputs = {
        f"--{name.replace('_', '-')}": Path(path)
        for name in names
        if isinstance(path := options.get(name), str | os.PathLike)
    }
    others = [value for name, value in options.items() if name not in names]
    given = [each for value in others for each in (value if isinstance(value, list) else [value])]
    check_outputs(outputs, [Path(path) for path in given if isinstance(path, str | os.PathLike)])


def check_output_folder(option: str, folder: Path) -> None:
    """Raise InputError unless files can be made in a folder, which need not be there yet."""
    _check_place(option, folder, folder)


def _check_place(option: str, path: Path, folder: Path) -> None:
    """Raise InputError unless `path`, which goes into `folder`, can be made there."""
    place, what = folder, f"{option} {shown(path)}"
    while (kind := what_is_at(place)) == "nothing" and place != place.parent:
        place = place.parent
    if kind != "folder":
        raise InputError(
            f"{what} cannot be written: {shown(place)} is no folder; give another {option}"
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"{what} cannot be written: no permission to write into {shown(place)}; give another "
            f"{option}"
        )


def _answers(path: Path) -> bool:
    try:
        return what_is_at(path) != "nothing"
    except InputError:
        return False  # whoever reads it says what is wrong


def _identity(path: Path) -> object:
    """Equal for two paths of one file, be it there or not."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return os.path.normcase(os.path.realpath(path))
    return found.st_dev, found.st_ino


def _stream_of(path: str | os.PathLike[str]) -> int | None:
    """The number of the process's own stream that a path names: /dev/stdout, /dev/fd/3."""
    text = os.fsdecode(path)
    match = _OWN_STREAM.fullmatch(text)
    return int(match[1]) if match else _STREAMS.get(text)


def is_stdout(path: str | os.PathLike[str]) -> bool:
    """Whether a path names this process's standard output."""
    return _stream_of(path) == 1


def _open_through(path: Path) -> TextIO | None:
    """A device, FIFO or stream of this process, to be written to as it is; None: a usual file."""
    number = _stream_of(path)
    if number is not None:  # opened anew, a file behind it would be written from its start
        return os.fdopen(os.dup(number), "w", encoding="utf-8", newline="")
    if what_is_at(path) != "device":
        return None
    return path.open("w", encoding="utf-8", newline="")


def _reason(error: OSError | ValueError) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return (reason or str(error)).lower()


def write_file(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Write a new file beside `path`, then rename it to `path`; makes missing folders.

    Of a link the file it leads to is replaced; a device, a FIFO and /dev/stdout are written to.
    Raises InputError when the file cannot be written.
    """
    with UnfinishedFile(path) as file:
        file.write_all(data)
    return file.path


class UnfinishedFile:
    """A file that is written under another name beside `path` and renamed at the end.

    `with UnfinishedFile(path) as file: write to file.part`; `commit` renames it, `discard` (also
    when the block raises) removes it. For data that does not fit in memory. Of a link the file it
    leads to is replaced. What is written to a device, a FIFO or /dev/stdout goes there as it comes.
    Raises InputError when the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = as_path(path)
        self._stream: TextIO | None = None
        self._through = False
        # the suffix stays last: video writers choose their container by it
        suffix = self.path.suffix if len(self.path.suffix) < _SUFFIX_SHOWN else ""
        name = f".{uuid.uuid4().hex}.part{suffix}"
        try:
            self._stream = _open_through(self.path)
            self._through = self._stream is not None
            linked = self.path.is_symlink()
            self._target = Path(os.path.realpath(self.path)) if linked else self.path
            folder = Path(tempfile.gettempdir()) if self._through else self._target.parent
            self.part = folder / name
            if not self._through:
                folder.mkdir(parents=True, exist_ok=True)
                if what_is_at(self._target) == "folder":
                    raise InputError("it is a folder; expected the name of a file")
                self.part.touch()
        except (OSError, ValueError) as error:
            raise self._error(error) from error

    def write(self, text: str) -> None:
        """Append text."""
        try:
            if self._stream is None:
                self._stream = self.part.open("w", encoding="utf-8", newline="")
            self._stream.write(text)
        except (OSError, ValueError) as error:
            raise self._error(error) from error

    def write_all(self, data: bytes | str) -> None:
        """Write the whole content."""
        try:
            self.part.write_bytes(data.encode() if isinstance(data, str) else data)
        except (OSError, ValueError) as error:
            raise self._error(error) from error

    def commit(self) -> Path:
        """Rename the file to `path`."""
        try:
            if self._through and self._stream is not None and self.part.exists():
                self._stream.flush()
                with self.part.open("rb") as data:
                    shutil.copyfileobj(data, self._stream.buffer)
            self._close()
            if not self._through:
                os.replace(self.part, self._target)
        except (OSError, ValueError) as error:
            self.discard()
            raise self._error(error) from error
        if self._through:
            self.discard()
        return self.path

    def discard(self) -> None:
        """Remove what was written; does nothing after `commit`."""
        with contextlib.suppress(OSError):
            self._close()
        with contextlib.suppress(OSError):
            self.part.unlink()

    def _error(self, error: OSError | ValueError) -> InputError:
        return InputError(f"{shown(self.path)} cannot be written: {error.__cause__ or error}")

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()
