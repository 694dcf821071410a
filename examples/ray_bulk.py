"""Photos, folders and videos on many processes, with Ray Data (the extra ray).
Run: python examples/ray_bulk.py OUTPUT_FOLDER SOURCE..."""

import sys
from collections.abc import Iterator
from typing import Any

import ray

from cfpose_sdk import PoseEstimator
from cfpose_sdk.media.frames import expand


class Poser:
    """One estimator a process; a batch is some sources, a row that comes out is a frame."""

    def __init__(self) -> None:
        self.estimator = PoseEstimator(threads=1)  # the processes share the cores

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for path in batch["path"].tolist():
            for poses in self.estimator.stream(path):  # a broken file is a warning
                yield {"source": [path], "image": [poses.source], "poses": [poses.to_json()]}


output, *sources = sys.argv[1:]
rows = [{"path": str(path)} for source in sources for path in expand(source)]
ray.data.from_items(rows).map_batches(Poser, batch_size=4, concurrency=2).write_json(output)
