"""Export: one fused ONNX graph from a checkpoint, and the proof that it is the same model."""

from cfpose_sdk.errors import require

require("onnx", "onnxscript", "torch", extra="export", why="cfpose_export")
