"""Names that no two sources share, and photos behind web addresses."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk.errors import ImageError, InputError
from cfpose_sdk.media import names
from cfpose_sdk.media.frames import Unread, expand, load_frame, passed_by
from cfpose_sdk.media.names import base_name, distinct_names, is_photo_url
from cfpose_sdk.media.sources import open_frames, open_source

PICTURE = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a folder with a.png and text.png."""
    cv2.imwrite(str(tmp_path / "a.png"), PICTURE)
    (tmp_path / "text.png").write_text("no picture")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_only_names_that_would_be_shared_get_folders() -> None:
    sources = ["cam1/0001.jpg", "cam2/0001.jpg", "cam1/b.jpg", "x/1.png", "v/c.mp4", "w/c.avi",
               "rtsp://one/live", "rtsp://two/live?x=1"]  # fmt: skip
    names = distinct_names(sources)
    assert list(map(names.get, sources)) == [
        "cam1/0001.jpg", "cam2/0001.jpg", "b.jpg", "x/1.png", "v/c.mp4", "w/c.avi",
        "one/live", "two/live",
    ]  # fmt: skip
    assert distinct_names(["a.jpg", "./a.jpg", "a.jpg"]).keys() == {"a.jpg", "./a.jpg"}
    deep = distinct_names([f"{first}/cam/img/7.jpg" for first in ("mon", "tue")])
    assert set(deep.values()) == {"mon/cam/img/7.jpg", "tue/cam/img/7.jpg"}


def test_same_names_in_several_folders_stay_apart_in_a_stream(tmp_path: Path) -> None:
    photos = [tmp_path / folder / "0001.png" for folder in ("one", "two")]
    for photo in photos:
        photo.parent.mkdir()
        cv2.imwrite(str(photo), PICTURE)
    assert [frame.name for frame in open_frames(photos)] == ["one/0001.png", "two/0001.png"]
    assert [frame.name for frame in open_frames(photos[:1])] == ["0001.png"]


def test_a_photo_behind_an_address(web: str) -> None:
    for ending in ("", "?w=640&name=b.mp4", "#top"):
        (frame,) = open_frames(f"{web}/a.png{ending}")
        assert frame.name == "a.png"
        np.testing.assert_array_equal(frame.image, PICTURE)
    (frame,) = open_frames([f"{web}/a.png"])
    assert frame.number is None
    for bad, cause in (("absent.png", "404"), ("text.png", "not an image")):
        (item,) = open_source(f"{web}/{bad}").items
        assert isinstance(item, Unread)
        assert cause in str(item.error)
    with pytest.raises(ImageError, match=r"http://127.*a\.png\?w=1 is a web address.*stream"):
        load_frame(f"{web}/a.png?w=1")


def test_downloads_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends too much, drips, or ends too early."""

    class Odd(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5000000")
            self.end_headers()
            for _ in range(40 if "drips" in self.path else 1):
                size = 3_000_000 if "large" in self.path else 10
                with contextlib.suppress(OSError):
                    self.wfile.write(b"x" * size)
                    self.wfile.flush()
                time.sleep(0.05 if "drips" in self.path else 0)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(names, "_LARGEST_DOWNLOAD", 1 << 20)
    monkeypatch.setattr(names, "_LONGEST_DOWNLOAD_S", 0.3)
    try:
        for name, message in (
            ("large", "larger than 1 MiB"),
            ("drips", "was not there after 0.3 s"),
            ("early", "4999990 bytes too early"),
        ):
            with pytest.raises(ImageError, match=message):
                names.fetch_photo(f"http://127.0.0.1:{server.server_port}/{name}.jpg", 5.0)
    finally:
        server.shutdown()
        server.server_close()


def test_an_address_may_lead_to_no_other_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(contextlib.nullcontext[Any]):
        url, length = "ftp://127.0.0.1/a.jpg", 0

        def __enter__(self) -> Any:
            return self

        def read1(self, size: int) -> bytes:
            return b""

    monkeypatch.setattr(names.urllib.request, "urlopen", lambda *_, **__: Answer())
    with pytest.raises(ImageError, match=r"leads to ftp://127.0.0.1/a.jpg; expected a photo"):
        names.fetch_photo("http://127.0.0.1/a.jpg", 5.0)


def test_addresses_by_their_path() -> None:
    assert is_photo_url("https://x/a.JPG?w=1")
    for other in ("https://x/a.mp4", "rtsp://x/a.jpg", "a.jpg", "file:///a.jpg", "https://[x/a"):
        assert not is_photo_url(other)
    assert base_name("https://x/my%20dog.jpg?w=1") == "my dog.jpg"


@pytest.mark.parametrize("bad", ["", "n" * 300, "zero\0.jpg", "loop", "loop/x.jpg", "file/x.jpg"])
def test_a_path_that_cannot_be_asked_for_is_our_error(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    cv2.imwrite("good.png", PICTURE)
    with pytest.raises(InputError):
        open_source(bad)
    with pytest.raises(ImageError):
        load_frame(bad)
    items = list(open_source([bad, "good.png"]).items)
    assert [isinstance(item, Unread) for item in items] == [True, False]


def test_a_folder_says_what_it_passes_by(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jfif", "c.avif", "d.HEIC", "e.heic", "f.mp4", "notes", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    assert [file.name for file in expand(tmp_path)] == ["a.jpg", "b.jfif", "c.avif"]
    assert passed_by(tmp_path) == {".heic": 2, ".mp4": 1, "notes": 1}
    assert passed_by(tmp_path / "a.jpg") == passed_by("") == {}
