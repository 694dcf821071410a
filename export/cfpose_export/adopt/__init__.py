"""A foreign pose network becomes a cfpose artifact: recognised, wrapped, proven, written.

Needs onnx and onnxruntime, not PyTorch.
"""
