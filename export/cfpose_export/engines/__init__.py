"""TensorRT engines and OpenVINO models, built from a graph."""
