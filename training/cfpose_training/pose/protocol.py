"""The paper's evaluation of a network: given boxes, flip test, joints above 0.01, OKS-NMS.

It is that of `cfpose-bench --preset paper`, for a network that has not been exported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from cfpose_bench.accuracy.boxes import box_accuracy, note_on_boxes
from cfpose_bench.accuracy.coco import Accuracy
from cfpose_bench.accuracy.crowdpose import Evaluator
from cfpose_bench.accuracy.oks import SIMCC_JOINT_THRESHOLD, oks_nms, padded_area, pose_scores
from cfpose_bench.data.annotations import is_crowdpose
from cfpose_bench.data.box_files import check_photos, read_box_file
from cfpose_sdk.arrays import Float64
from cfpose_sdk.errors import TrainingError
from cfpose_sdk.files import digest
from cfpose_training.data.crop_dataset import DataOptions
from cfpose_training.data.people import People, in_source
from cfpose_training.data.photo_cache import cache_photos
from cfpose_training.pose.evaluation import DevelopmentSet, Predictions, predict_people

GROUND_TRUTH = "gt"


@dataclass(frozen=True)
class Protocol:
    """How an ablation measures: plainly in annotated boxes, or as the paper does.

    `boxes`: a COCO detection-results file; None: the annotated boxes. Raises TrainingError for
    boxes without the preset, which gives them a meaning.
    """

    paper: bool = False
    boxes: Path | None = None

    def __post_init__(self) -> None:
        if self.boxes is not None and not self.paper:
            raise TrainingError("--boxes are those of --preset paper; give both, or neither")

    @classmethod
    def of(cls, preset: str | None, boxes: str | None) -> Protocol:
        """Of the command's options. Raises TrainingError for the preset without boxes."""
        if preset is not None and boxes is None:
            raise TrainingError(
                "--preset paper needs the published boxes: --boxes det_for_crowd_test_0.1_0.5.json "
                "for CrowdPose, COCO_val2017_detections_AP_H_56_person.json for COCO (or gt)"
            )
        path = None if boxes in (None, GROUND_TRUTH) else Path(str(boxes))
        return cls(preset == "paper", path)

    @property
    def text(self) -> str:
        """One sentence for the table."""
        if not self.paper:
            return "Measured in annotated boxes, without flip test and OKS-NMS."
        where = "annotated boxes" if self.boxes is None else f"the boxes of {self.boxes.name}"
        return (
            f"Measured in {where}, with SimCC's flip test, joints above a score of "
            f"{SIMCC_JOINT_THRESHOLD}, and OKS-NMS."
        )

    def record(self) -> dict[str, Any] | None:
        """What stands beside figures, so that those of another protocol are not taken for them."""
        if not self.paper:
            return None
        return {"preset": "paper", "boxes": None if self.boxes is None else digest(self.boxes)}


class PaperPhotos:
    """The held-out photos of a development set with the boxes that the paper's figures have."""

    def __init__(self, dev: DevelopmentSet, boxes: Path | None, data: DataOptions) -> None:
        self.dev = dev
        self.image_ids: list[int] = sorted(
            image["id"]
            for image in dev.annotations["images"]
            if in_source(image, dev.source, held_out=True)
        )
        self.people, self.box_scores = dev.people, np.ones(len(dev.people))
        self.cache, self.note = dev.cache, ""
        if boxes is not None:
            self.people, self.box_scores = self._read(boxes, data.root)
            self.cache = cache_photos(self.people.photos, data.cache)

    def _read(self, path: Path, root: Path) -> tuple[People, Float64]:
        """The people of a boxes file in held-out photos, and the boxes' scores."""
        truth, joints = self.dev.annotations, len(self.dev.spec.skeleton)
        rows = read_box_file(path, truth["categories"][0]["id"]).boxes
        check_photos(path, rows, set(self.image_ids))
        names = {image["id"]: image["file_name"] for image in truth["images"]}
        shown = [image_id for image_id in self.image_ids if image_id in rows]
        boxes = np.concatenate([rows[image_id] for image_id in shown])
        photo = np.repeat(np.arange(len(shown)), [len(rows[image_id]) for image_id in shown])
        count, folder = len(boxes), root / self.dev.source.images
        accuracy = box_accuracy(truth, rows, self.image_ids) or {}
        name = Path(self.dev.source.annotations).stem
        self.note = note_on_boxes(
            name, len(self.image_ids), is_crowdpose(truth), accuracy.get("AP")
        )
        people = People(
            photos=tuple(folder / names[image_id] for image_id in shown),
            image_ids=tuple(shown),
            photo=photo.astype(np.intp),
            boxes=boxes[:, :4],
            joints=np.zeros((count, joints, 3)),
            areas=np.zeros(count),
            repeat=np.ones(count, dtype=np.intp),
            joint_weight=np.ones((count, joints)),
        )
        return people, boxes[:, 4]

    def predict(self, network: nn.Module) -> Predictions:
        """Poses in all boxes, by the flip test."""
        return predict_people(network, self.people, self.cache, self.dev.spec, flipped=True)

    def accuracy(self, predictions: Predictions, evaluator: Evaluator = "own") -> Accuracy:
        """AP after the rescoring and OKS-NMS of SimCC's evaluation."""
        scores = pose_scores(self.box_scores, predictions.score, SIMCC_JOINT_THRESHOLD)
        kept = self._kept(predictions, scores)
        return self.dev.evaluate(self.people, predictions, scores, kept, self.image_ids, evaluator)

    def _kept(self, predictions: Predictions, scores: Float64) -> NDArray[np.intp]:
        """Indices of the poses that OKS-NMS leaves, photo by photo."""
        spec, boxes = self.dev.spec, self.people.boxes
        areas = padded_area(boxes[:, 2:] - boxes[:, :2], spec.size_wh, spec.box_scale)
        kept: list[NDArray[np.intp]] = [np.zeros(0, dtype=np.intp)]
        for photo in range(len(self.people.photos)):
            mine = np.flatnonzero(self.people.photo == photo)
            best = oks_nms(
                predictions.xy[mine], scores[mine], areas[mine], spec.skeleton.oks_sigmas
            )
            kept.append(mine[best])
        return np.concatenate(kept)
