"""The journal of a labelling run: what the labeller saw in each photo, a line a photo.

A run that is stopped goes on after the last whole line. Rules are applied to what stands here, so a
finished run gives other labels under other rules without looking again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from cfpose_bench.data.json_lines import JsonLines, read_whole_lines
from cfpose_sdk.arrays import Float64
from cfpose_sdk.errors import TrainingError
from cfpose_training.run.state import Record, differences

PIXEL_DIGITS, SCORE_DIGITS = 2, 4


@dataclass(frozen=True, eq=False)
class Sight:
    """What was seen in one photo, rounded as the journal keeps it."""

    image_id: int
    size_wh: tuple[int, int]
    boxes: Float64  # (N, 4) xyxy
    box_scores: Float64  # (N,)
    looks: Float64  # (L, N, K, 4) x, y, score, spread; see `Labeller.look`


class Journal:
    """`with Journal(path, record, resume=False) as journal`: `done`, by image id, and `add`.

    Raises TrainingError when the file holds another run, or any and `resume` is not set.
    """

    def __init__(self, path: Path, record: Record, *, resume: bool) -> None:
        self.path = path
        self.done: dict[int, Sight] = {}
        lines = self._whole_lines(record, resume=resume)
        try:
            self._file = JsonLines(path, lines)
        except OSError as error:
            raise TrainingError(f"{path} cannot be written: {error}") from error
        if not lines:
            self._write({"record": record})
        for line in lines[1:]:
            sight = _sight(json.loads(line))
            self.done[sight.image_id] = sight

    def add(
        self, image_id: int, size_wh: tuple[int, int], boxes: Float64, box_scores: Float64,
        looks: Float64,
    ) -> None:  # fmt: skip
        """Keep what was seen in a photo; it is on disk when this returns."""
        entry = {
            "image_id": image_id,
            "size_wh": list(size_wh),
            "boxes": boxes.round(PIXEL_DIGITS).tolist(),
            "box_scores": box_scores.astype(np.float64).round(SCORE_DIGITS).tolist(),
            "xy": looks[..., :2].round(PIXEL_DIGITS).tolist(),
            "score": looks[..., 2].round(SCORE_DIGITS).tolist(),
            "spread": looks[..., 3].round(PIXEL_DIGITS).tolist(),
        }
        self._write(entry)
        self.done[image_id] = _sight(entry)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _whole_lines(self, record: Record, *, resume: bool) -> list[bytes]:
        """The lines of an earlier run of this record; none where there was no run."""
        lines = read_whole_lines(self.path)
        if not lines:
            return []
        try:
            made = json.loads(lines[0])["record"]
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{self.path} is no journal of labels; take another --out"
            ) from error
        if len(lines) == 1:
            return []  # it ended before its first photo: nothing would be lost
        if not resume:
            raise TrainingError(
                f"{self.path} holds a run of {len(lines) - 1} photos; go on with --resume, or "
                f"remove it"
            )
        if wrong := differences(made, record):
            raise TrainingError(
                f"{self.path} holds another run: {'; '.join(wrong)}; take another --out"
            )
        return lines

    def _write(self, entry: dict[str, Any]) -> None:
        try:
            self._file.add(entry)
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be written: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _sight(entry: dict[str, Any]) -> Sight:
    score = np.array(entry["score"], dtype=np.float64)
    if score.ndim != 3:  # nobody: the joints' axis is lost in JSON
        score = np.zeros((len(score), 0, 0))
    xy = np.array(entry["xy"], dtype=np.float64).reshape(*score.shape, 2)
    spread = np.array(entry["spread"], dtype=np.float64).reshape(score.shape)
    width, height = entry["size_wh"]
    return Sight(
        int(entry["image_id"]),
        (int(width), int(height)),
        np.array(entry["boxes"], dtype=np.float64).reshape(-1, 4),
        np.array(entry["box_scores"], dtype=np.float64),
        np.concatenate([xy, score[..., None], spread[..., None]], axis=-1),
    )
