"""The page of examples/browser in headless Chromium, used as a person would."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cfpose_sdk import Poses
from tests.slow.conftest import Farthest

MAX_PX = 0.1
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--disable-background-networking", "--disable-component-update", "--disable-gpu",
    "--disable-quic", "--disable-sync", "--no-first-run",
]  # fmt: skip
LEFT_BGR = (255, 194, 53)  # the colour of a left limb on the page


@dataclass(frozen=True)
class Visit:
    """What the page said and did, and the folder of its screenshots."""

    seen: dict[str, Any]
    shots: Path


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A static host that sends no headers of its own and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def example(root: Path) -> Path:
    folder = root / "examples" / "browser"
    for package in ("onnxruntime-web", "playwright-core"):
        if not (folder / "node_modules" / package).is_dir():
            pytest.skip(f"{package} is not installed: run npm ci in examples/browser")
    return folder


@pytest.fixture(scope="module")
def page(example: Path, node: str) -> Iterator[str]:
    """The address of the page, served as its README says."""
    command = [node, "serve.js", "--port", "0"]
    with subprocess.Popen(command, cwd=example, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


@pytest.fixture(scope="module")
def visit(
    example: Path, node: str, page: str, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Visit]:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("Chromium is not installed (in Debian: apt install chromium)")

    def visit_with(size_wh: tuple[int, int], *flags: str, **more: Any) -> Visit:
        folder = tmp_path_factory.mktemp("visit")
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has none for root
        job = {
            "page": page, "playwright": str(example / "package.json"), "chromium": browser,
            "flags": [*FLAGS, *sandbox, *flags], "pictures": [], "shots": str(folder),
            "size_wh": size_wh, "timeout_ms": 120_000, **more,
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job))
        command = [node, str(root / "tests" / "slow" / "drive_page.mjs"), str(folder / "job.json")]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
        assert run.returncode == 0, run.stderr
        return Visit(json.loads(run.stdout), folder)

    return visit_with


@pytest.fixture(scope="module")
def desktop(visit: Callable[..., Visit], photos: list[Path]) -> Visit:
    return visit((1280, 900), pictures=[str(photo) for photo in photos])


@pytest.fixture(scope="module")
def phone(
    visit: Callable[..., Visit], photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Visit:
    """With a second of video, and a camera that films the same street."""
    folder = tmp_path_factory.mktemp("films")
    street = cv2.imread(str(photos[1]))
    assert street is not None
    frames = [street[50:530, 2 * n : 2 * n + 640].copy() for n in range(10)]
    writer = cv2.VideoWriter(
        str(folder / "street.webm"), cv2.VideoWriter.fourcc(*"VP80"), 10, (640, 480)
    )
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write a video that browsers play")
    for frame in frames:
        writer.write(frame)
    writer.release()
    planes = [cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420).tobytes() for frame in frames]
    camera = folder / "camera.y4m"
    head = b"YUV4MPEG2 W640 H480 F10:1 Ip A1:1 C420jpeg\n"
    camera.write_bytes(head + b"".join(b"FRAME\n" + plane for plane in planes))
    flags = [
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={camera}",
    ]  # fmt: skip
    video = str(folder / "street.webm")
    return visit((390, 844), *flags, pictures=[str(photos[0])], video=video, camera=True)


def test_the_page_answers_as_python_does(
    desktop: Visit, expected: dict[Path, Poses], farthest: Farthest
) -> None:
    away = {
        photo.name: farthest(answer["people"], poses)
        for answer, (photo, poses) in zip(desktop.seen["answers"], expected.items(), strict=True)
    }
    print("farthest joint, px:", away)
    assert max(away.values()) <= MAX_PX
    sizes = [tuple(answer["size_wh"]) for answer in desktop.seen["answers"]]
    assert sizes == [poses.image_size_wh for poses in expected.values()]


def test_it_runs_in_threads_and_shows_its_time(desktop: Visit) -> None:
    threads = min(os.cpu_count() or 1, 4)
    assert desktop.seen["runtime"] == f"WASM, {threads} thread{'s' if threads > 1 else ''}"
    print(desktop.seen["speeds"])
    assert all(" ms a frame: finding " in speed for speed in desktop.seen["speeds"])


def test_skeletons_are_drawn(desktop: Visit, photos: list[Path]) -> None:
    for photo in photos:
        picture = cv2.imread(str(desktop.shots / f"{photo.name}.canvas.png"))
        assert picture is not None
        drawn = (np.abs(picture.astype(int) - LEFT_BGR).max(axis=-1) < 12).sum()
        assert (drawn > 30) == (photo.name != "nobody.png"), f"{photo.name}: {drawn} pixels"


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_nothing_leaves_and_nothing_fails(
    size: str, page: str, request: pytest.FixtureRequest
) -> None:
    seen = request.getfixturevalue(size).seen
    assert seen["console"] == []
    assert len(seen["requests"]) > 10
    own = (page, f"blob:{page}", "data:,")
    assert [address for address in seen["requests"] if not address.startswith(own)] == []


def test_video_and_camera(phone: Visit) -> None:
    for source in ("video", "camera"):
        counts = [len(frame["people"]) for frame in phone.seen["frames"][source]]
        assert counts, source
        assert min(counts) >= 2, source
    assert phone.seen["overflow"] is False, "the page is wider than the phone"


@pytest.mark.parametrize("path", ["package.json", "serve.js", "../../README.md", "%2e%2e/x", "/"])
def test_the_server_hands_out_the_page_alone(page: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404") as error:
        urllib.request.urlopen(page + path, timeout=10)
    error.value.close()


def test_a_static_host_serves_a_copy_in_one_thread(
    example: Path, node: str, visit: Callable[..., Visit], tmp_path: Path, photos: list[Path]
) -> None:
    command = [node, "serve.js", "--copy", str(tmp_path)]
    subprocess.run(command, cwd=example, check=True, capture_output=True, timeout=120)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert not {"serve.js", "package.json"} & names
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        seen = visit((1280, 900), page=address, pictures=[str(photos[2])]).seen
        server.shutdown()
    assert seen["runtime"] == "WASM, 1 thread"
    assert len(seen["answers"][0]["people"]) > 0
    assert seen["console"] == []
