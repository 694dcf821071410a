"""A top-down heat-map network of another project in an ONNX file, as PP-TinyPose is.

Input (N, 3, H, W) RGB under ImageNet's mean and deviation, output (N, K, H/4, W/4): a Gaussian
about each joint. A joint at input pixel x stands at cell x / 4. Joints are COCO's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.arrays import Float64
from cfpose_sdk.backends import open_backend
from cfpose_sdk.crops import crop_transforms, extract_crops, invert_transforms, transform_points
from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.media.image import Image
from cfpose_sdk.skeleton import COCO_17
from cfpose_sdk.spec import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB

Float32 = NDArray[np.float32]
STRIDE = 4
BOX_SCALE = 1.25  # of its training crops
BLUR = 3  # cells, side of the Gaussian that DARK smooths a map with
LEAST = 1e-10  # of a smoothed map, before its logarithm
CURVED = 1e-6  # least |determinant| of a peak's second derivatives that says where its middle is


class Found(NamedTuple):
    """What a labelling model says of N people: xy (N, K, 2) photo pixels, confidence (N, K)."""

    xy: Float64
    confidence: Float64


class HeatmapGraph:
    """One file, opened: crops → heat maps. Raises ArtifactError for a graph of other ends."""

    skeleton = COCO_17

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        self.path, self.name = path, path.stem
        self._backend = open_backend(path, device="cpu", threads=threads)
        shapes = list(self._backend.input_shapes.values())
        sides = shapes[0][1:] if len(shapes) == 1 and len(shapes[0]) == 4 else ()
        if len(sides) != 3 or sides[0] != 3 or None in sides or len(self._backend.outputs) != 1:
            raise ArtifactError(
                f"{path} has inputs {dict(self._backend.input_shapes)} and outputs "
                f"{self._backend.outputs}; expected one input (N, 3, H, W) of fixed sides and one "
                f"output of heat maps"
            )
        self.size_wh = int(sides[2] or 0), int(sides[1] or 0)
        deviation = np.array(IMAGENET_STD_RGB) * 255
        mean = np.array(IMAGENET_MEAN_RGB) * 255
        self._gain = (1 / deviation).astype(np.float32)
        self._shift = (-mean / deviation).astype(np.float32)

    def heat(self, crops: NDArray[np.uint8]) -> Float32:
        """(N, H, W, 3) uint8 BGR crops of `size_wh` → (N, K, H/4, W/4)."""
        pixels = crops[..., ::-1] * self._gain + self._shift
        feed = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        (heat,) = self._backend.run({self._backend.inputs[0]: feed}).values()
        width, height = self.size_wh
        wanted = (len(crops), len(self.skeleton), height // STRIDE, width // STRIDE)
        if heat.shape != wanted:
            raise ArtifactError(f"{self.path} gave heat maps {heat.shape}, expected {wanted}")
        return np.asarray(heat, dtype=np.float32)

    def close(self) -> None:
        """Free the model."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HeatmapPoses:
    """Several such files as one labelling model: the mean of their heat maps, decoded by DARK.

    Raises ArtifactError when they take crops of different sizes.
    """

    skeleton = COCO_17

    def __init__(self, paths: Sequence[Path], *, threads: int | None = None) -> None:
        self._graphs = [HeatmapGraph(path, threads=threads) for path in paths]
        sizes = {graph.size_wh for graph in self._graphs}
        if len(sizes) != 1:
            raise ArtifactError(
                f"{', '.join(map(str, paths))} take crops of {sorted(sizes)} pixels; give "
                f"labellers of one size"
            )
        self.size_wh = sizes.pop()

    def predict(self, image: Image, boxes: Float64) -> Found:
        """Poses in (N, 4) xyxy boxes of a photo."""
        to_crop = crop_transforms(boxes, self.size_wh, BOX_SCALE)
        crops = extract_crops(image, to_crop, self.size_wh)
        maps = np.stack([graph.heat(crops) for graph in self._graphs])
        cells, peak = dark_decode(np.asarray(maps.mean(axis=0), dtype=np.float32))
        xy = transform_points(invert_transforms(to_crop), cells * STRIDE)
        return Found(xy, np.clip(peak, 0, 1))

    def close(self) -> None:
        """Free the models."""
        for graph in self._graphs:
            graph.close()


def dark_decode(heat: Float32) -> tuple[Float64, Float64]:
    """(N, K, h, w) heat maps → positions (N, K, 2) in cells, x and y, and peaks (N, K).

    Zhang et al., "Distribution-Aware Coordinate Representation for Human Pose Estimation" (CVPR
    2020): one Newton step from the highest cell on the logarithm of the smoothed map.
    """
    count, joints, height, width = heat.shape
    flat = heat.reshape(count * joints, height, width)
    cells = np.zeros((len(flat), 2))
    peak = flat.reshape(len(flat), -1).max(axis=1, initial=-np.inf).astype(np.float64)
    for index, plane in enumerate(flat):
        y, x = divmod(int(plane.argmax()), width)
        cells[index] = x, y
        if 1 < x < width - 2 and 1 < y < height - 2:
            near = cv2.GaussianBlur(plane, (BLUR, BLUR), 0)[y - 2 : y + 3, x - 2 : x + 3]
            cells[index] += _newton_step(np.log(np.maximum(near.astype(np.float64), LEAST)))
    return cells.reshape(count, joints, 2), peak.reshape(count, joints)


def _newton_step(near: Float64) -> Float64:
    """From the middle of a 5x5 patch to where its gradient vanishes: x and y, in cells."""
    slope = np.array([near[2, 3] - near[2, 1], near[3, 2] - near[1, 2]]) / 2
    along_x = (near[2, 4] - 2 * near[2, 2] + near[2, 0]) / 4
    along_y = (near[4, 2] - 2 * near[2, 2] + near[0, 2]) / 4
    mixed = (near[3, 3] - near[1, 3] - near[3, 1] + near[1, 1]) / 4
    if abs(along_x * along_y - mixed**2) < CURVED:
        return np.zeros(2)
    step = -np.linalg.solve(np.array([[along_x, mixed], [mixed, along_y]]), slope)
    # a flat top has its middle anywhere; the peak is in this cell or the next
    return np.clip(step, -1, 1)
