"""For `peer_heatmaps.py`: UDP crops of its people, and joints to fit: TARGETS.npz."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from cfpose_sdk import PoseEstimator
from cfpose_sdk.crops import crop_transforms, extract_crops, transform_points
from cfpose_sdk.media.image import read_image
from peer_boxes import PHOTOS, peer_people


def main(target: Path) -> None:
    """Write crops (N, 256, 192, 3) and the bundled model's joints (N, 17, 2) in their pixels."""
    parts, crops = [], []
    with PoseEstimator(device="cpu") as estimator:
        for name, boxes in peer_people().items():
            poses = estimator.predict(PHOTOS / name, boxes=boxes)
            onto = crop_transforms(boxes, (192, 256), 1.25, geometry="udp")
            parts.append(transform_points(onto, poses.xy))
            crops.append(extract_crops(read_image(PHOTOS / name), onto, (192, 256)))
    joints = np.concatenate(parts).astype(np.float32)
    np.savez_compressed(target, xy=joints, crops=np.concatenate(crops))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
