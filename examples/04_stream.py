"""A video, camera or stream, frame by frame. Run: python examples/04_stream.py [SOURCE] [FRAMES]

SOURCE: a video file, a camera's number (default 0), or an address such as rtsp://camera/1.
"""

import itertools
import sys

from cfpose_sdk import PoseEstimator

name = sys.argv[1] if len(sys.argv) > 1 else "0"
source = int(name) if name.isdigit() else name
limit = int(sys.argv[2]) if len(sys.argv) > 2 else None  # None: until the source ends

# the detector runs on every third frame; in between the boxes follow the poses
with PoseEstimator() as estimator, estimator.stream(source, detect_every=3) as stream:
    for poses in itertools.islice(stream, limit):
        print(f"{poses.time_s:.2f} s: {len(poses)} people, {poses.speed_ms['total']:.0f} ms")
