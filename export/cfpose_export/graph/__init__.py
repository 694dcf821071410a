"""ONNX graphs: their rules, how PyTorch writes them, and the nodes that take whole frames."""
