"""The data set that `--dataset` names: a known one, the demo, a folder, or a file."""

from __future__ import annotations

import os

from cfpose_bench.dataset import DATA_VARIABLE, KeypointDataset, open_dataset
from cfpose_bench.demo import open_demo
from cfpose_bench.download import COCO_HOST, COCO_VAL, Archive, coco_cache, fetch_archives


def find_dataset(
    source: str,
    images: str | None = None,
    data_root: str | None = None,
    mirror: str | None = None,
    archives: tuple[Archive, ...] = COCO_VAL,
) -> KeypointDataset:
    """Open the data set; `coco-val` without a data root is downloaded once into a cache.

    Raises DatasetError when it cannot be found or fetched.
    """
    if source == "demo":
        return open_demo()
    root = data_root or os.environ.get(DATA_VARIABLE)
    if source == "coco-val" and not root:
        folder = fetch_archives(archives, coco_cache(), host=mirror or COCO_HOST)
        return open_dataset(source, images=images, data_root=folder)
    return open_dataset(source, images=images, data_root=data_root)
