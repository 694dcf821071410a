"""The curves of a log: a picture of them, whatever a row lacks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from cfpose_training.run.curves import BACK, write_curves


def test_curves_rise_where_the_figures_do(tmp_path: Path) -> None:
    rows = [
        {"epoch": str(e), "loss": str(9 - e), "dev_AP": "" if e == 2 else str(0.1 * e)}
        for e in range(1, 6)
    ]
    write_curves(tmp_path / "curves.png", rows)
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture.shape == (300, 960, 3)
    inside = picture[40:265, 480 + 70 : 480 + 460].astype(int)
    rising = (np.abs(inside - (200, 110, 20)).max(axis=2) < 30).nonzero()
    left, right = rising[1] < 100, rising[1] > 290
    assert rising[0][left].mean() > rising[0][right].mean() + 50
    write_curves(tmp_path / "one.png", [{"epoch": "1", "loss": "nan"}])
    assert (cv2.imread(str(tmp_path / "one.png")) != BACK).any()
