"""Benchmarks: accuracy and latency of the very artifact that ships."""

from cfpose_sdk.errors import require

require("pycocotools", extra="bench", why="cfpose_bench")
