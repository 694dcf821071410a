"""Human pose estimation: `PoseEstimator().predict("photo.jpg")`."""

from cfpose_sdk.detectors import DetectorOptions
from cfpose_sdk.errors import (
    ArtifactError,
    BackendError,
    BoxError,
    CfposeError,
    DatasetError,
    ExportError,
    ImageError,
    InputError,
    MissingDependencyError,
    SpecError,
    TrainingError,
)
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.results import Poses
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14, Skeleton
from cfpose_sdk.spec import ModelSpec
from cfpose_sdk.streaming.smoothing import SmoothOptions
from cfpose_sdk.streaming.tracking import TrackOptions

__version__ = "0.1.0"

__all__ = [
    "COCO_17",
    "CROWDPOSE_14",
    "ArtifactError",
    "BackendError",
    "BoxError",
    "CfposeError",
    "DatasetError",
    "DetectorOptions",
    "ExportError",
    "ImageError",
    "InputError",
    "MissingDependencyError",
    "ModelSpec",
    "PoseEstimator",
    "Poses",
    "Skeleton",
    "SmoothOptions",
    "SpecError",
    "TrackOptions",
    "TrainingError",
    "__version__",
]
