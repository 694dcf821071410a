"""Export: one fused ONNX graph from a checkpoint, engines from it, and the proof of each step.

Graphs and engines need onnx alone; what starts from a checkpoint needs PyTorch too.
"""

from cfpose_sdk.errors import require

require("onnx", "ml_dtypes", extra="adopt", why="cfpose_export")
