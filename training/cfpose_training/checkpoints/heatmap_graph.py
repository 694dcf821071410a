"""The heat maps of a top-down network in an ONNX file: PP-TinyPose's own, or an adopted one.

PP-TinyPose: input (N, 3, H, W) RGB under ImageNet's mean and deviation, output (N, K, H/4, W/4),
COCO's joints. An artifact of `cfpose-export adopt` takes crops as they are; its maps are a value
inside the graph. A joint at input pixel x stands at cell x / stride.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.backends import open_backend
from cfpose_sdk.errors import ArtifactError
from cfpose_sdk.skeleton import COCO_17, Skeleton
from cfpose_sdk.spec import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB, SPEC_KEY, ModelSpec
from cfpose_training.checkpoints.from_graph import load_graph

Float32 = NDArray[np.float32]
STRIDE = 4  # of PP-TinyPose
MAPS = "adopted.maps"  # the value that an adopted graph's decoder reads


class HeatmapGraph:
    """One file, opened: crops → heat maps. Raises ArtifactError for a graph that has none."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        self.path, self.name = path, path.stem
        self.skeleton: Skeleton = COCO_17
        self._backend = open_backend(path, device="cpu", threads=threads)
        self._is_artifact = SPEC_KEY in self._backend.metadata
        if self._is_artifact:
            self._backend.close()
            self._open_inside(threads)
        else:
            self._check_raw()
        deviation = np.array(IMAGENET_STD_RGB) * 255
        mean = np.array(IMAGENET_MEAN_RGB) * 255
        self._gain = (1 / deviation).astype(np.float32)
        self._shift = (-mean / deviation).astype(np.float32)

    def heat(self, crops: NDArray[np.uint8]) -> Float32:
        """(N, H, W, 3) uint8 BGR crops of `size_wh` → (N, K, H / stride, W / stride)."""
        feed: NDArray[Any] = crops
        if not self._is_artifact:
            pixels = crops[..., ::-1] * self._gain + self._shift
            feed = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        (heat,) = self._backend.run({self._backend.inputs[0]: feed}).values()
        wanted = (len(crops), len(self.skeleton), *self._map_hw)
        if heat.shape != wanted:
            raise ArtifactError(f"{self.path} gave heat maps {heat.shape}, expected {wanted}")
        return np.asarray(heat, dtype=np.float32)

    def close(self) -> None:
        """Free the model."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_raw(self) -> None:
        """Read size and stride of a network as it was published."""
        shapes = list(self._backend.input_shapes.values())
        sides = shapes[0][1:] if len(shapes) == 1 and len(shapes[0]) == 4 else ()
        if len(sides) != 3 or sides[0] != 3 or None in sides or len(self._backend.outputs) != 1:
            raise ArtifactError(
                f"{self.path} has inputs {dict(self._backend.input_shapes)} and outputs "
                f"{self._backend.outputs}; expected one input (N, 3, H, W) of fixed sides and one "
                f"output of heat maps"
            )
        self.size_wh, self.stride = (int(sides[2] or 0), int(sides[1] or 0)), float(STRIDE)
        self._map_hw = self.size_wh[1] // STRIDE, self.size_wh[0] // STRIDE

    def _open_inside(self, threads: int | None) -> None:
        """Open an adopted artifact's graph with its maps as the only output."""
        spec = ModelSpec.from_json(self._backend.metadata[SPEC_KEY])
        _check_maps(self.path, spec)
        self.skeleton, self.size_wh = spec.skeleton, spec.size_wh
        model = load_graph(self.path)
        from onnx import TensorProto, helper

        del model.graph.output[:]
        model.graph.output.append(helper.make_tensor_value_info(MAPS, TensorProto.FLOAT, None))
        with tempfile.TemporaryDirectory() as folder:
            inside = Path(folder) / self.path.name
            inside.write_bytes(model.SerializeToString())
            self._backend = open_backend(inside, device="cpu", threads=threads)
        width, height = self.size_wh
        (maps,) = self._backend.run({"crops": np.zeros((1, height, width, 3), np.uint8)}).values()
        self._map_hw = maps.shape[2], maps.shape[3]
        self.stride = width / maps.shape[3]


def _check_maps(path: Path, spec: ModelSpec) -> None:
    """Raise ArtifactError unless an artifact has maps that lie in its crops as ours do."""
    problem = ""
    if spec.adopted is None:
        problem = "an exported graph keeps its bins to itself; give the checkpoint that it is of"
    elif spec.adopted.family != "heatmap":
        problem = f"its network answers {spec.adopted.family}, not heat maps"
    elif spec.geometry != "classic":
        problem = f"its crops are {spec.geometry}, a student's are classic"
    elif spec.input != "crops":
        problem = "it takes frames; adopt it with --input crops"
    if problem:
        raise ArtifactError(f"{path.name} cannot teach: {problem}")
