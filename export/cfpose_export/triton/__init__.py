"""Model repositories of NVIDIA's Triton Inference Server."""
