"""What rtmlib's own RTMPose class says on a SimCC graph: NETWORK.onnx ANSWERS.npz.

Runs where rtmlib is installed; cfpose need not be. The graph is the bundled model's, cut by
`cfpose-bench simcc default -o NETWORK.onnx`; it normalises itself, so rtmlib is told no mean.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from rtmlib import RTMPose

from peer_boxes import PHOTOS, peer_people


def main(network: Path, answers: Path) -> None:
    """Write boxes, joints and scores of every person."""
    height, width = onnxruntime.InferenceSession(str(network)).get_inputs()[0].shape[2:]
    pose = RTMPose(str(network), model_input_size=(width, height), mean=None, std=None)
    columns: dict[str, list[object]] = {"photo": [], "box": [], "xy": [], "score": []}
    for name, boxes in peer_people().items():
        image = cv2.imread(str(PHOTOS / name))
        for box in boxes:
            xy, score = pose(image, bboxes=[box])
            values = (name, box, xy[0], score[0])
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    versions = {
        package: importlib.metadata.version(package)
        for package in ("rtmlib", "onnxruntime", "opencv-python-headless")
    }
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    arrays |= {"xy": arrays["xy"].astype(np.float32), "score": arrays["score"].astype(np.float32)}
    np.savez_compressed(answers, versions=np.array(str(versions)), **arrays)
    print(f"{len(arrays['xy'])} people, {versions}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
