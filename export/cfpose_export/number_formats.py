"""fp16 and bf16: rounding float32 constants to them, and what does not fit."""

from __future__ import annotations

from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Typed = Literal["fp16", "bf16"]
ELEMENT = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# Rounding errs by at most this, relative, unless small values fall out of the format's range
ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}


def misfit(tensor: onnx.TensorProto, precision: Typed) -> str | None:
    """Why a constant cannot be rounded: overflow, or values lost below the smallest normal one."""
    exact = numpy_helper.to_array(tensor)
    rounded = _round(exact, precision).astype(np.float64)
    if not np.isfinite(rounded).all():
        return f"{tensor.name} reaches {np.abs(exact).max():.3g}, beyond {precision}"
    error = float(np.linalg.norm(rounded - exact))
    if error > 2 * ROUNDOFF[precision] * float(np.linalg.norm(exact)):
        return f"{tensor.name} is too small for {precision} (most of it is below its normal range)"
    return None


def _round(array: NDArray[np.float32], precision: Typed) -> NDArray[np.generic]:
    with np.errstate(over="ignore"):  # judged by the caller
        kind = np.dtype(np.float16) if precision == "fp16" else np.dtype(ml_dtypes.bfloat16)
        return array.astype(kind)


def low_constant(tensor: onnx.TensorProto, name: str, precision: Typed) -> onnx.TensorProto:
    """The constant in the type, under another name."""
    low = _round(numpy_helper.to_array(tensor), precision)
    return helper.make_tensor(name, ELEMENT[precision], low.shape, low.tobytes(), raw=True)


def rounded_constant(tensor: onnx.TensorProto, name: str, precision: Typed) -> onnx.TensorProto:
    """The constant rounded to the type, as float32, under another name."""
    low = _round(numpy_helper.to_array(tensor), precision)
    return numpy_helper.from_array(low.astype(np.float32), name)
