"""Run a network on the development photos: keypoints, raw scores, AP with ground-truth boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cfpose_bench.accuracy.coco import Accuracy, evaluate
from cfpose_bench.accuracy.crowdpose import Evaluator, evaluate_crowdpose
from cfpose_bench.data.annotations import is_crowdpose
from cfpose_sdk.arrays import Float64
from cfpose_sdk.crops import invert_transforms, transform_points
from cfpose_sdk.skeleton import CROWDPOSE_14
from cfpose_sdk.spec import ModelSpec
from cfpose_training.config import Arithmetic, Source
from cfpose_training.data.crop_dataset import plain_crops
from cfpose_training.data.people import People, load_people
from cfpose_training.data.photo_cache import PhotoCache, cache_photos
from cfpose_training.nets.decode import covariance, decode_simcc, expected_oks
from cfpose_training.nets.flip import flip_test
from cfpose_training.nets.pose_net import Normalise, RefinedPoseNet
from cfpose_training.sources import read_source


@dataclass(frozen=True)
class Predictions:
    """Poses of N people in photo pixels."""

    xy: Float64  # (N, K, 2), refined where the network has a refiner
    score: Float64  # (N, K) raw, in [0, 1], by the spec's `evidence`; flip test: by the peak
    covariance: Float64 | None = None  # (N, K, 2, 2) photo pixels², unscaled; None: flip test


class DevelopmentSet:
    """The held-out photos of one source, with ground-truth boxes."""

    def __init__(
        self,
        source: Source,
        root: Path,
        spec: ModelSpec,
        cache_folder: Path | None,
        arithmetic: Arithmetic = "cfpose",
    ) -> None:
        self.spec, self.source = spec, source
        self.people: People = load_people(
            [source], root, spec.skeleton, held_out=True, arithmetic=arithmetic
        )
        self.cache: PhotoCache = cache_photos(self.people.photos, cache_folder)
        self.annotations: dict[str, Any] = read_source(source, root, spec.skeleton)

    def predict(
        self, network: nn.Module, batch_size: int = 32, *, flipped: bool = False
    ) -> Predictions:
        """Run a PoseNet or RefinedPoseNet over all people, in float32; `flipped`: the flip test."""
        people, cache = self.people, self.cache
        return predict_people(network, people, cache, self.spec, batch_size, flipped=flipped)

    def accuracy(self, predictions: Predictions, evaluator: Evaluator = "own") -> Accuracy:
        """AP on the held-out photos with people; a person's score is the mean raw joint score.

        CrowdPose's files are evaluated as CrowdPose does, with AP_easy, AP_medium and AP_hard.
        """
        people, scores = self.people, predictions.score.mean(axis=1)
        kept = np.arange(len(people))
        return self.evaluate(people, predictions, scores, kept, people.image_ids, evaluator)

    @property
    def is_crowdpose(self) -> bool:
        """Whether photos and joints are CrowdPose's, so that its evaluators fit."""
        return is_crowdpose(self.annotations) and self.spec.skeleton == CROWDPOSE_14

    def evaluate(
        self,
        people: People,
        predictions: Predictions,
        scores: Float64,
        kept: NDArray[np.intp],
        image_ids: Sequence[int],
        evaluator: Evaluator = "own",
    ) -> Accuracy:
        """AP of the `kept` poses of `people`, whose scores (N,) rank them, over `image_ids`."""
        results = [
            {
                "image_id": people.image_ids[people.photo[person]],
                "category_id": 1,
                "keypoints": np.column_stack([predictions.xy[person], predictions.score[person]])
                .ravel()
                .tolist(),
                "score": float(scores[person]),
            }
            for person in kept
        ]
        truth = self.annotations
        if self.is_crowdpose:
            return evaluate_crowdpose(truth, results, image_ids=image_ids, evaluator=evaluator)
        return evaluate(truth, results, skeleton=self.spec.skeleton, image_ids=image_ids)


def predict_people(
    network: nn.Module,
    people: People,
    cache: PhotoCache,
    spec: ModelSpec,
    batch_size: int = 32,
    *,
    flipped: bool = False,
) -> Predictions:
    """Run a PoseNet or RefinedPoseNet over all people, in float32; `flipped`: the flip test."""
    device = next(network.parameters()).device
    normalise = Normalise(spec.mean_rgb, spec.std_rgb).to(device)
    count = len(people)
    joints = len(spec.skeleton)
    xy, score = np.zeros((count, joints, 2)), np.zeros((count, joints))
    spread = np.zeros((count, joints, 2, 2))
    was_training = network.training
    network.eval()
    for start in range(0, count, batch_size):
        chosen = range(start, min(count, start + batch_size))
        crops, transforms = plain_crops(people, cache, spec, chosen)
        with torch.no_grad():
            images = normalise(torch.from_numpy(crops).to(device))
            if flipped:
                crop_xy, crop_score = flip_test(network, images, spec)
                crop_spread = torch.zeros(*crop_xy.shape, 2)
            else:
                crop_xy, crop_score, crop_spread = _run(network, images, spec)
        rows, back = slice(start, start + len(chosen)), invert_transforms(transforms)
        xy[rows] = transform_points(back, crop_xy.cpu().numpy())
        score[rows] = crop_score.cpu().numpy()
        linear = back[:, None, :, :2]
        spread[rows] = linear @ crop_spread.cpu().numpy() @ np.swapaxes(linear, -1, -2)
    network.train(was_training)
    return Predictions(xy, score, None if flipped else spread)


def _run(network: nn.Module, images: Tensor, spec: ModelSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Poses (B, K, 2), raw scores (B, K) and covariances (B, K, 2, 2), in crop pixels."""
    pose = network.pose if isinstance(network, RefinedPoseNet) else network
    x_logits, y_logits, taps = pose(images)
    xy, score = decode_simcc(x_logits, y_logits, spec.split_ratio, spec.decode, spec.windows)
    if isinstance(network, RefinedPoseNet):
        xy = network.refiner.apply_to(taps, xy, score)
    spread = covariance(
        x_logits, y_logits, xy, spec.split_ratio,
        temperature=spec.spread_temperature, isotropy=spec.spread_isotropy,
    )  # fmt: skip
    if spec.evidence == "spread":
        score = expected_oks(xy, spread, spec.skeleton.oks_sigmas)
    return xy, score, spread
