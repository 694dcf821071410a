"""Who is who in a video. Run: python examples/05_tracking.py VIDEO [DRAWN.mp4]"""

import sys
from collections import Counter
from pathlib import Path

import cv2

from cfpose_sdk import PoseEstimator

video = Path(sys.argv[1])
drawn = sys.argv[2] if len(sys.argv) > 2 else "tracked.mp4"
fps = cv2.VideoCapture(str(video)).get(cv2.CAP_PROP_FPS)
frames: Counter[int] = Counter()
writer = cv2.VideoWriter()

with PoseEstimator() as estimator:
    for poses in estimator.stream(video, track=True, smooth=True):
        frames.update([] if poses.ids is None else poses.ids.tolist())
        if not writer.isOpened():
            writer.open(drawn, cv2.VideoWriter.fourcc(*"mp4v"), fps, poses.image_size_wh)
        writer.write(poses.plot())  # a colour and a number for each person
writer.release()

for person, count in sorted(frames.items()):
    print(f"person {person}: {count} frames")
