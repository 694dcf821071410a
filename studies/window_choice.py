"""How far from the peak should the decoder look? The same network with windows of several widths.

    python studies/window_choice.py --checkpoint runs/spread/refined.safetensors \\
        --recipe training/recipes/cfpose-s.toml --data-root DATA --cache runs/cache \\
        --json studies/results/window-dev.json

A minute a window. The development photos of the recipe. For each `oks_window` (0: the narrow one)
confidence and covariance are fitted anew, as training does it, and then: AP with annotated boxes
and with the bundled finder's, calibration error, and the shares of joints within 1 and 2 sigma.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

from cfpose_bench.accuracy.coco import evaluate
from cfpose_sdk.estimator import PoseEstimator
from cfpose_sdk.files import write_file
from cfpose_sdk.spec import MAX_OKS_WINDOW, ModelSpec
from cfpose_training.checkpoints.files import load_pose, save_pose
from cfpose_training.config import load_recipe
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.nets.pose_net import RefinedPoseNet
from cfpose_training.pose.calibration import measured_spec
from cfpose_training.pose.evaluation import DevelopmentSet
from cfpose_training.pose.train import deployed_spec, development_set

WINDOWS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.5, MAX_OKS_WINDOW)  # the last: the mean


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    network, _ = load_pose(arguments.checkpoint)
    assert isinstance(network, RefinedPoseNet)
    rows = []
    for window in WINDOWS:
        spec = dataclasses.replace(deployed_spec(recipe), oks_window=window)
        dev = development_set(recipe, spec, DataOptions(arguments.data_root, arguments.cache))
        assert dev is not None
        fitted = measured_spec(network, spec, dev)
        found = _with_the_finder(network, fitted, dev)
        rows.append({"oks_window": window, **fitted.metrics, "finder_AP": round(found, 4)})
        print(rows[-1], flush=True)
    report = {"in_use": recipe.pose.oks_window, "windows": rows}
    write_file(arguments.json, (json.dumps(report, indent=2) + "\n").encode())


def _with_the_finder(network: RefinedPoseNet, spec: ModelSpec, dev: DevelopmentSet) -> float:
    """AP of the whole pipeline on the development photos."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "window.safetensors"
        save_pose(checkpoint, network, spec)
        estimator = PoseEstimator(checkpoint)
        results = []
        for index, photo in enumerate(dev.people.image_ids):
            results += estimator.predict(dev.cache[index]).to_coco(photo)
    return evaluate(
        dev.annotations, results, skeleton=spec.skeleton, image_ids=dev.people.image_ids
    ).AP


if __name__ == "__main__":
    main()
