"""Adopted networks against the peers' own code on the same networks and people.

The peers ran in environments of their own (see `studies/README.md`); their answers are committed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cfpose_bench.peers.simcc_graph import write_simcc_graph
from cfpose_export.cli import main
from cfpose_sdk.estimator import BUNDLED_MODEL, PoseEstimator

MAX_PX = 0.05  # crop pixels
MAX_FLIPS = 0.01  # of the joints: two bins whose heights differ by a crop's rounding


def answers(root: Path, name: str) -> dict[str, NDArray]:
    with np.load(root / "studies" / "results" / name) as stored:
        return {key: stored[key] for key in stored.files}


def distances(
    root: Path, artifact: Path, said: dict[str, NDArray], judge: Path, ending: str = ""
) -> NDArray[np.float64]:
    """(M,) crop pixels between the artifact's joints and the peer's, of those that are sure.

    `judge`: the artifact whose confidence of at least 0.3 says so. `ending`: of the arrays' names.
    """
    far = []
    with (
        PoseEstimator(artifact, device="cpu") as estimator,
        PoseEstimator(judge, device="cpu") as other,
    ):
        width, height = estimator.spec.size_wh
        for photo in np.unique(said["photo"]):
            here = said["photo"] == photo
            boxes = said["box"][here]
            path = root / "examples" / "photos" / str(photo)
            poses = estimator.predict(path, boxes=boxes)
            span = boxes[:, 2:] - boxes[:, :2]
            region = np.maximum(span[:, 0], span[:, 1] * width / height) * estimator.spec.box_scale
            apart = np.linalg.norm(poses.xy - said[f"xy{ending}"][here], axis=2)
            peer = said[f"score{ending}"][here].reshape(poses.confidence.shape).clip(0, 1)
            assert np.quantile(np.abs(poses.confidence - peer), 0.95) < 0.01
            sure = other.predict(path, boxes=boxes).confidence >= 0.3
            far.append((apart * (width / region)[:, None])[sure])
    return np.concatenate(far)


@pytest.fixture(scope="module")
def simcc_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model's SimCC network, adopted as rtmlib reads it."""
    folder = tmp_path_factory.mktemp("simcc")
    write_simcc_graph(BUNDLED_MODEL, folder / "cut.onnx")
    words = ["adopt", str(folder / "cut.onnx"), "-o", str(folder / "adopted.onnx")]
    words += ["--skeleton", "coco17", "--colour", "bgr", "--mean", "0", "0", "0"]
    words += ["--std", "1", "1", "1", "--box-scale", "1.25", "--geometry", "classic"]
    words += ["--decode", "argmax", "--score", "mean", "--values", "probabilities"]
    assert main([*words, "--license", "Apache-2.0", "--min-confidence", "0.05"]) == 0
    return folder / "adopted.onnx"


def test_simcc_agrees_with_rtmlib(root: Path, simcc_artifact: Path) -> None:
    """Half a pixel is a bin; where two are all but equal, a crop's rounding chooses."""
    said = answers(root, "peer-simcc.npz")
    # the peaks of softmaxed vectors are low; the bundled model is the same network, calibrated
    far = distances(root, simcc_artifact, said, BUNDLED_MODEL)
    assert len(far) > 100
    assert (far > MAX_PX).mean() <= MAX_FLIPS
    assert np.median(far) < MAX_PX / 10


@pytest.fixture(scope="module")
def heatmap_artifact(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small ViTPose, by its preset."""
    target = tmp_path_factory.mktemp("heatmaps") / "adopted.onnx"
    words = ["adopt", str(root / "studies" / "vitpose-tiny.onnx"), "-o", str(target)]
    assert main([*words, "--preset", "vitpose", "--license", "Apache-2.0"]) == 0
    return target


def test_heatmaps_agree_with_transformers_reading(root: Path, heatmap_artifact: Path) -> None:
    """Their post-processing of the network's maps, boxes over the border included."""
    said = answers(root, "peer-heatmaps.npz")
    far = distances(root, heatmap_artifact, said, heatmap_artifact, "_read")
    assert len(far) > 400
    assert far.max() <= MAX_PX


def test_heatmaps_agree_with_transformers_crops(root: Path, heatmap_artifact: Path) -> None:
    """Their crops too, where these lie inside the photo: beyond it scipy and OpenCV differ."""
    said = answers(root, "peer-heatmaps.npz")
    inside = (said["box"] >= 0).all(axis=1)
    within = {name: v[inside] if v.ndim else v for name, v in said.items()}
    far = distances(root, heatmap_artifact, within, heatmap_artifact)
    assert len(far) > 300
    assert far.max() <= MAX_PX
