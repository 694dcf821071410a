"""The model `cfpose` of a Triton repository: a whole frame in, its people out.

`cfpose-export triton` copies this file. Triton's Python backend runs it, which calls the models
`cfpose_finder` and `cfpose_pose` beside it; the server's Python needs cfpose-sdk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from cfpose_sdk import CfposeError, PoseEstimator, Poses
from cfpose_sdk.backends import Backend
from cfpose_sdk.detectors.base import PersonFinder
from cfpose_sdk.errors import BackendError


class NeighbourBackend(Backend):
    """Another model of the same server, with the metadata that its graph carries."""

    provider = "Triton"

    def __init__(self, name: str, facts: Mapping[str, Any]) -> None:
        self.path = Path(name)
        self.inputs, self.outputs = tuple(facts["inputs"]), tuple(facts["outputs"])
        self.metadata = facts["metadata"]
        self.max_batch = facts["max_batch"] or None

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        response = pb_utils.InferenceRequest(
            model_name=self.path.name,
            requested_output_names=list(self.outputs),
            inputs=[pb_utils.Tensor(name, np.ascontiguousarray(a)) for name, a in feeds.items()],
        ).exec()
        if response.has_error():
            raise BackendError(f"{self.path.name} failed: {response.error().message()}")
        return {
            name: pb_utils.get_output_tensor_by_name(response, name).as_numpy()
            for name in self.outputs
        }

    def close(self) -> None:
        """The server owns the model."""


class TritonPythonModel:
    """What Triton's Python backend looks for."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the estimator over the neighbours, by the parameters of config.pbtxt."""
        parameters = json.loads(args["model_config"])["parameters"]
        facts = {
            name: json.loads(parameters[name]["string_value"])
            for name in ("cfpose_pose", "cfpose_finder")
        }
        pose, finder = (NeighbourBackend(name, each) for name, each in facts.items())
        self.estimator = PoseEstimator(pose, detector=PersonFinder(finder))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request; one that fails leaves the others alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        frame = pb_utils.get_input_tensor_by_name(request, "frame").as_numpy()
        try:
            poses = self.estimator.predict(frame)
        except CfposeError as error:
            return pb_utils.InferenceResponse([], error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, value) for name, value in _outputs(poses).items()]
        )

    def finalize(self) -> None:
        """Close the estimator."""
        self.estimator.close()


def _outputs(poses: Poses) -> dict[str, np.ndarray]:
    return {
        "boxes": poses.boxes,
        "box_scores": poses.box_scores,
        "keypoints": poses.xy,
        "confidence": poses.confidence,
    }
