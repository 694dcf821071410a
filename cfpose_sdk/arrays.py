"""Array types for annotations, and GpuImage, an image in a GPU's memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

WHOLE_GPU = -1  # in the place of a stream: all streams of the GPU


@dataclass(frozen=True, eq=False)
class GpuImage:
    """A BGR uint8 image (H, W, 3) that lies whole and contiguous in a CUDA GPU's memory.

    The memory is another library's: it stays while this object is there, through `owner`. What was
    begun on `stream` before now must have ended before the image is read; None: nothing must.
    """

    address: int
    shape: tuple[int, int, int]
    stream: int | None
    owner: object
    given: object | None  # as the caller gave it; None: a capsule, which can be read once
    copy: Callable[[], NDArray[np.uint8]]  # to the host; raises ImageError

    @functools.cached_property
    def host(self) -> NDArray[np.uint8]:
        """A copy on the host, made once."""
        return self.copy()
