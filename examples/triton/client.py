"""Poses from a Triton server, with cfpose's own PoseEstimator in front of it.
Run: python examples/triton/client.py PHOTO [localhost:8000]   (pip install 'tritonclient[http]')"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tritonclient.http as triton

from cfpose_sdk import PoseEstimator
from cfpose_sdk.backends import Backend
from cfpose_sdk.detectors.base import PersonFinder


class TritonBackend(Backend):
    """A graph that a server runs. Its config has what the graph says of itself."""

    provider = "Triton"

    def __init__(self, server: triton.InferenceServerClient, name: str) -> None:
        parameters = server.get_model_config(name)["parameters"]
        facts = json.loads(parameters["cfpose"]["string_value"])
        self.server, self.path = server, Path(name)
        self.inputs, self.outputs = tuple(facts["inputs"]), tuple(facts["outputs"])
        self.metadata, self.max_batch = facts["metadata"], facts["max_batch"] or None

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = []
        for name, array in feeds.items():
            kind = "UINT8" if array.dtype == np.uint8 else "FP32"
            tensors.append(triton.InferInput(name, list(array.shape), kind))
            tensors[-1].set_data_from_numpy(np.ascontiguousarray(array))
        wanted = [triton.InferRequestedOutput(name) for name in self.outputs]
        answer = self.server.infer(self.path.name, tensors, outputs=wanted)
        return {name: answer.as_numpy(name) for name in self.outputs}

    def close(self) -> None:
        """The server owns the model."""


if __name__ == "__main__":
    photo, address = (*sys.argv[1:], "localhost:8000")[:2]
    server = triton.InferenceServerClient(address)
    finder = PersonFinder(TritonBackend(server, "cfpose_finder"))
    poses = PoseEstimator(TritonBackend(server, "cfpose_pose"), detector=finder).predict(photo)
    print(poses)
    poses.save("poses.jpg")
