"""Fixtures and settings that every test shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# FFmpeg reads it once a process, when a test first opens a video; `cfpose` sets it for itself
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100)
settings.load_profile("ci")

ROOT = Path(__file__).resolve().parents[1]
# what this user tuned, or adopted, must not decide what a test sees
os.environ["CFPOSE_CACHE"] = str(ROOT / ".pytest_cache" / "cfpose")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests keep what they decode, adopt or fetch in a folder of their own, not in the user's."""
    os.environ["CFPOSE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def own_interrupts() -> Iterator[None]:
    """Ctrl-C stays pytest's: an interrupted command leaves it to the system."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The optional data beside the repository; tests that need it skip without it."""
    path = ROOT.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip("../shared is not there: this test needs its photos or golden numbers")
    return path
