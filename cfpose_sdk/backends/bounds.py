"""How far a runtime may put joints from onnxruntime in float32 on the CPU, given the same model.

In crop pixels, over the joints whose confidence reaches 0.3.
tests/export/proof/test_backend_parity.py holds every runtime that it can run to them, with the
bundled model and the photos of examples/.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Bound:
    """`max_px` of any joint; where a joint between two peaks may jump it is infinite, and `far` is
    the share of joints that may be further off than a pixel.
    """

    max_px: float
    median_px: float
    far: float = 0.0


BOUNDS: Mapping[str, Bound] = MappingProxyType(
    {
        "OpenVINO f32": Bound(0.01, 0.001),
        "PyTorch": Bound(0.01, 0.001),
        # the graph does not round its crops to whole grey levels
        "frame input": Bound(math.inf, 0.15, far=0.05),
        "TensorRT fp32": Bound(0.05, 0.01),  # asked for; no engine has run on hardware yet
        "OpenVINO bf16": Bound(math.inf, 0.5, far=0.25),
        "OpenVINO int8": Bound(math.inf, 0.6, far=0.3),  # of a quantised graph
    }
)
