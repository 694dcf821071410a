"""Poses on one photo. Run: python examples/01_image.py [PHOTO] [PICTURE]"""

import sys
from pathlib import Path

from cfpose_sdk import PoseEstimator

photo = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "photos" / "street.jpg"
picture = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("poses.jpg")

with PoseEstimator() as estimator:
    poses = estimator.predict(photo)

print(f"{len(poses)} people in {photo.name}")
for box, xy, visible in zip(poses.boxes, poses.xy, poses.visible, strict=True):
    nose_x, nose_y = xy[poses.skeleton.keypoints.index("nose")]
    print(f"box {box.round()}, {visible.sum()} joints visible, nose at {nose_x:.1f}, {nose_y:.1f}")

poses.save(picture)
print(f"drawn: {picture}")
