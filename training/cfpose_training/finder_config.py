"""Options of the person finder: its photos, views, labels and run."""

from __future__ import annotations

from dataclasses import dataclass, field

from cfpose_training.nets.finder import FinderNetConfig
from cfpose_training.optim_config import OptimConfig


@dataclass(frozen=True)
class PhotoSource:
    """Photos for the finder, with COCO boxes where there are any; paths below the data root."""

    name: str
    images: str
    annotations: str = ""
    empty: bool = False  # nobody is in these photos: whatever is found there is false
    repeat: int = 1
    holdout_every: int = 0  # 1: all of them
    files: str = "*"  # only photos whose name fits this pattern


@dataclass(frozen=True)
class FinderAugmentConfig:
    """Random view of a photo: mirrored, zoomed about its letterbox, shifted, brightness changed."""

    flip_p: float = 0.5
    zoom: tuple[float, float] = (0.6, 1.8)
    contrast: float = 0.3  # pixel values are scaled by 1 ± this
    brightness: float = 30.0  # and moved by up to this, of 255
    mosaic_p: float = 0.0  # share of letterboxes that four photos divide among them


@dataclass(frozen=True)
class FinderConfig:
    """The person finder: network, letterbox, labels and run."""

    name: str
    optim: OptimConfig
    sources: tuple[PhotoSource, ...]
    net: FinderNetConfig = field(default_factory=FinderNetConfig)
    augment: FinderAugmentConfig = field(default_factory=FinderAugmentConfig)
    size_wh: tuple[int, int] = (320, 320)  # of the training letterboxes
    deploy_size_wh: tuple[int, int] = (0, 0)  # of the artifact's; zeros: as in training
    label_score: float = 0.4  # boxes of the labelling detector count from this score on
    ignore_score: float = 0.1  # between the two they are neither person nor background
    threshold: float = 0.74  # of the fourth root of the heat; written into the artifact
    nms_iou: float = 0.5
    trained_on: tuple[str, ...] = ()
    license: str = ""

    @property
    def artifact_size_wh(self) -> tuple[int, int]:
        """Letterbox of the artifact, and of the figures on held-out photos."""
        return self.deploy_size_wh if any(self.deploy_size_wh) else self.size_wh
