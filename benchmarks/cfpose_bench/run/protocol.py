"""The options of a run that decide its figures; stored in every report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cfpose_bench.accuracy.coco import MAX_POSES
from cfpose_bench.accuracy.crowdpose import OPEC_12, Evaluator
from cfpose_bench.accuracy.oks import OKS_NMS, SIMCC_JOINT_THRESHOLD
from cfpose_sdk.backends import Device
from cfpose_sdk.errors import InputError

PRESETS = ("paper", "deployed")
PEOPLE = (1, 5, 20)  # of the people-per-frame curve
BATCHES = (1, 8, 32)  # of the throughput


@dataclass(frozen=True)
class Protocol:
    """Options of a run that decide its figures. Raises InputError when one is out of range."""

    boxes: tuple[str, ...] = ("gt",)  # gt, detector, or a COCO detection-results file
    detector: str | None = None  # the detector's file; None is the bundled finder
    flip_test: bool = False
    joint_threshold: float | None = None  # joints that count in a pose's score; None: all
    raw_scores: bool = False  # joints count by their raw score, without the calibration
    suppress_repeats: bool = True  # by OKS-NMS, where `oks_nms` says so
    padded_oks: bool = False  # the area of OKS-NMS: of the padded box, not of the box
    threads: int = 1
    device: Device = "auto"
    rounds: int = 10
    warmup: int = 3
    repeats: int = 20  # of each point of the curve and the throughput; 0: neither
    bootstrap: int = 1000
    seed: int = 0
    preset: str | None = None
    evaluator: Evaluator = "own"  # opec-12: CrowdPose on its first 12 joints, as OPEC-Net does

    def __post_init__(self) -> None:
        least_of = {"threads": 1, "rounds": 1, "warmup": 0, "repeats": 0, "seed": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.joint_threshold is not None and not 0 <= self.joint_threshold <= 1:
            raise InputError(f"joint_threshold must be in [0, 1], got {self.joint_threshold}")

    def oks_nms(self, source: str) -> float | None:
        """The OKS-NMS threshold. None for ground-truth boxes, which are one a person, and where it
        was switched off.

        The preset `paper` suppresses under ground-truth boxes too, as the papers' evaluation does.
        """
        if not self.suppress_repeats:
            return None
        return None if source == "gt" and self.preset != "paper" else OKS_NMS

    def to_dict(self) -> dict[str, Any]:
        """The part of a report's `protocol` that options decide."""
        record = {
            "preset": self.preset,
            "boxes": "+".join(map(box_label, self.boxes)),
            "score": f"box score × mean joint {'raw score' if self.raw_scores else 'confidence'}; "
            "the score of a ground-truth box is 1",
            "joint_threshold": self.joint_threshold,
            "flip_test": self.flip_test,
            "flip_test_method": self._flip_test_method(),
            "evaluator": OPEC_12 if self.evaluator == OPEC_12 else None,
            "oks_nms": {box_label(source): self.oks_nms(source) for source in self.boxes},
            "oks_nms_area": "padded box" if self.padded_oks else "box",
            "max_poses": MAX_POSES,
            "bootstrap": {"resamples": self.bootstrap, "seed": self.seed, "unit": "photo"},
            "warmup": self.warmup,
            "rounds": self.rounds,
            "sync": "a stage ends when its outputs are in host memory",
            "threads": self.threads,
            "device": self.device,
            "batch": "the people of one photo",
        }
        return {key: value for key, value in record.items() if value is not None}

    def _flip_test_method(self) -> str | None:
        if not self.flip_test:
            return None
        return "in the graph" if self.preset == "paper" else "mean of both views' keypoints"


def with_preset(protocol: Protocol, preset: str | None, boxes: tuple[str, ...] | None) -> Protocol:
    """The protocol under a preset; `boxes` are those of the command line, None without any.

    `paper`: that of the paper's tables I (COCO val) and III (CrowdPose): flip test by the SimCC
    vectors, which a graph must do inside, joints above a raw score of 0.01, OKS-NMS 0.9 over padded
    boxes, and the published boxes, which must be given. Table II is test-dev, which only COCO's
    server can evaluate. `deployed`: the detector's boxes, no flip test.
    """
    if preset == "paper":
        if not boxes or "detector" in boxes:
            raise InputError(
                "--preset paper needs the published boxes: --boxes COCO_val2017_detections_AP_H_56_"
                "person.json for COCO val, det_for_crowd_test_0.1_0.5.json for CrowdPose (or gt)"
            )
        if protocol.joint_threshold not in (None, SIMCC_JOINT_THRESHOLD):
            raise InputError(
                f"--preset paper counts joints above {SIMCC_JOINT_THRESHOLD}, got "
                f"--joint-threshold {protocol.joint_threshold}; give one of the two"
            )
        if not protocol.suppress_repeats:
            raise InputError("--preset paper suppresses repeated poses; leave --no-oks-nms out")
        return replace(
            protocol,
            boxes=boxes,
            preset=preset,
            flip_test=True,
            joint_threshold=SIMCC_JOINT_THRESHOLD,
            raw_scores=True,
            padded_oks=True,
        )
    if preset == "deployed":
        return replace(protocol, boxes=boxes or ("detector",), preset=preset)
    return replace(protocol, boxes=boxes or ("gt",))


def box_label(source: str) -> str:
    """gt, detector, or the file's name: a report holds no path of the machine it was made on."""
    return Path(source).name
