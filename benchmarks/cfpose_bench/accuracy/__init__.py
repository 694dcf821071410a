"""Accuracy of poses and boxes: the one evaluator of cfpose, CrowdPose's protocol, calibration."""

from cfpose_bench.accuracy.coco import Accuracy, evaluate

__all__ = ["Accuracy", "evaluate"]
