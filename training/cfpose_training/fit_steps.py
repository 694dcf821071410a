"""What `cfpose-train fit` does with a recipe, beside its stages: the start, labels, the end."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LabelStep:
    """Labels to write before training, as `cfpose-train label` does; paths from the data root.

    A labeller is a bundled model's name, a file, or PRESET:FILE of a foreign network. Without
    annotations a detector finds the people. `out` is a COCO file that a source then names.
    """

    images: str
    labeller: tuple[str, ...]
    out: str
    annotations: str = ""
    detector: str = ""
    fill: bool = False  # the joints that the annotations never label; else people without any


@dataclass(frozen=True)
class FitConfig:
    """The steps around the stages; paths without a folder start from the recipe's folder."""

    data_root: str = "."  # folder of the sources' paths, from the recipe's folder
    init: str = ""  # start: default, cfpose-s, cfpose-m, or a file; empty: from nothing
    init_share: float = 0.0  # of the start's weights in the mean with the trained ones
    teacher: str = ""  # of [distill], by name or file
    refiner: bool = False  # train stage 2; else the student is finished as it is
    labels: tuple[LabelStep, ...] = ()
