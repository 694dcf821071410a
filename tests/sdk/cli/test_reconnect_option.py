"""`cfpose predict --reconnect`: the frames of a camera that comes back are in one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cfpose_sdk.errors import InputError
from cfpose_sdk.media import sources
from cfpose_sdk.media.frames import Footage, Frame, Item, Unread


@pytest.fixture
def cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cameras that give three frames and are lost, twice; then nobody answers."""
    lives = iter(range(2))

    def open_video(source: Any, timeout_s: float, name: str | None) -> Footage:
        if next(lives, None) is None:
            raise InputError(f"camera {source} cannot be opened as a video")
        photo = np.random.default_rng(7).integers(0, 256, (128, 64, 3), dtype=np.uint8)

        def items() -> Iterator[Item]:
            for n in range(3):
                yield Frame(photo, f"camera-{source}-{n:06d}", 1.0, n, n / 25)
            yield Unread(InputError(f"camera {source} ended or was lost after 3 frames"))

        return Footage(items(), lambda: None, live=True)

    monkeypatch.setattr(sources, "open_video", open_video)


@pytest.mark.usefixtures("cameras")
@pytest.mark.filterwarnings("default:.*there again after:RuntimeWarning")
def test_frames_before_and_after_the_gap_are_in_one_file(
    cfpose: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # it does not come back a second time, so it was not read to its end: 1
    assert cfpose.predict("0", "--reconnect", "0.6", "--track", "--json", "a.json") == 1
    frames = json.loads(Path("a.json").read_text())
    assert [frame["frame"] for frame in frames] == list(range(6))
    ids = [{person["id"] for person in frame["people"]} for frame in frames]
    assert ids[0] == ids[2] == {1, 2}
    assert ids[3] == ids[5] == {3, 4}
    said = capsys.readouterr().err
    assert "camera 0 was lost after 3 frames and is there again" in said
    assert "camera 0 was lost after 6 frames, and did not answer again within 0.6 s" in said


@pytest.mark.usefixtures("cameras")
def test_without_it_the_first_loss_ends_it(
    cfpose: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cfpose.predict("0", "--json", "a.json") == 1
    assert len(json.loads(Path("a.json").read_text())) == 3
    assert cfpose.predict("0", "--reconnect", "-1") == 2
