"""Boxes and pictures of examples/browser, byte for byte against the SDK's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cfpose_sdk.boxes import letterbox, nms
from cfpose_sdk.crops import crop_transforms, extract_crops

LARGE_WH = (144, 144)  # of which a cut letterbox lacks something
SIZE_WH, CROP_WH, BOX_SCALE, PAD, LIMIT = (48, 48), (18, 24), 1.05, 114, 0.65


def _unequal(ours: NDArray[np.uint8], path: Path) -> tuple[int, float]:
    """The largest difference, and the share of bytes that differ."""
    theirs = np.fromfile(path, np.uint8).reshape(ours.shape)
    away = np.abs(theirs.astype(int) - ours)
    return int(away.max()), float((away > 0).mean())


# shrunk by whole and by broken numbers, half a pixel to round, as large, enlarged, one pixel
@pytest.mark.parametrize(
    "shape_hw", [(96, 96), (75, 101), (192, 64), (48, 48), (13, 96), (36, 29), (1, 1), (2, 300)]
)
def test_pictures_and_boxes(
    shape_hw: tuple[int, int], root: Path, node: str, tmp_path: Path
) -> None:
    draw = np.random.default_rng(shape_hw[0])
    image = draw.integers(0, 256, (*shape_hw, 3)).astype(np.uint8)
    height, width = shape_hw
    box = [-0.1 * width, 0.2 * height, 0.7 * width, 1.1 * height]
    corners = draw.uniform(0, 20, (60, 2))
    boxes = np.hstack([corners, corners + draw.uniform(8, 16, (60, 2))])
    scores = draw.integers(0, 9, 60) / 9  # some are equal
    job: dict[str, Any] = {
        "folder": (root / "examples" / "browser").as_uri(), "size_wh": SIZE_WH,
        "large_wh": LARGE_WH, "pad": PAD,
        "image": {"width": width, "height": height}, "box": box, "crop_wh": CROP_WH,
        "box_scale": BOX_SCALE, "boxes": boxes.tolist(), "scores": scores.tolist(),
        "limit": LIMIT,
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    cv2.cvtColor(image, cv2.COLOR_BGR2RGBA).tofile(tmp_path / "image")
    script = root / "tests" / "slow" / "run_geometry.mjs"
    command = [node, str(script), str(tmp_path / "job.json"), str(tmp_path / "image")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)

    assert said["kept"] == nms(boxes, scores, LIMIT).tolist()
    canvas, scale = letterbox(image, SIZE_WH, PAD)
    assert said["scale"] == scale
    most, share = _unequal(canvas, tmp_path / "image.letterbox")
    assert most <= 1
    assert share < 0.01  # SIMD code of OpenCV rounds a few otherwise
    cut, _ = letterbox(image, LARGE_WH, PAD, cut=True)
    most, share = _unequal(cut, tmp_path / "image.cut")
    assert most <= 1
    assert share < 0.01
    crop = extract_crops(image, crop_transforms([box], CROP_WH, BOX_SCALE), CROP_WH)[0]
    most, share = _unequal(crop, tmp_path / "image.crop")
    # OpenCV before 5 samples at places rounded to 1/32 px
    assert most <= (1 if int(cv2.__version__.split(".")[0]) >= 5 else 16)
    if most <= 1:
        assert share < 0.01
