"""Engines of TensorRT and models of OpenVINO, built from a graph."""
