"""The people that peers are compared on: of the example photos, and boxes that are hard to crop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PHOTOS = Path(__file__).resolve().parents[1] / "examples" / "photos"


def peer_people() -> dict[str, NDArray[np.float64]]:
    """Photo → (N, 4) xyxy boxes: as annotated, wide and tall about the same middle, and cut."""
    people: dict[str, NDArray[np.float64]] = {}
    for name, rows in json.loads((PHOTOS / "people.json").read_text(encoding="utf-8")).items():
        boxes = np.asarray(rows, np.float64).reshape(-1, 4)
        if not len(boxes):
            continue
        centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        parts = [boxes]
        for wide, tall in ((1.9, 1.0), (0.7, 1.3)):
            odd = half * [wide, tall]
            parts.append(np.concatenate([centre - odd, centre + odd], axis=1))
        # over the border: from the photo's corner, two thirds of the person outside
        first = boxes[:2] - np.tile(centre[:2] + half[:2] / 3, 2)
        people[name] = np.concatenate([*parts, first])
    return people
