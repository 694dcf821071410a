"""The ONNX graphs: their rules, how they are traced, and the nodes put around them."""
