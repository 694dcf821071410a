"""What a foreign detector's file does not say about itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cfpose_sdk.errors import InputError

Layout = Literal["yolox", "yolox-decoded", "yolov5", "yolov8", "end2end", "detr"]
Pixels = Literal["bgr255", "rgb01", "rgb-imagenet"]


@dataclass(frozen=True)
class DetectorOptions:
    """Each None is read from the file, or, where it cannot be, is an error that names the option.

    `threshold`: boxes scored below are dropped; None is the artifact's own, else 0.25. `nms_iou`:
    of two boxes that overlap more the lower-scored is dropped; None is the artifact's own, else
    0.5 (end2end and detr need none and do none). `layout`: what the output holds, see the modules
    of this package. `person_class`: the number of the class of people. `size_wh`: of the input,
    where the graph leaves it open. `pixels`: how they are fed; None is the layout's custom.
    Raises InputError when a value is out of range.
    """

    threshold: float | None = None
    nms_iou: float | None = None
    layout: Layout | None = None
    person_class: int | None = None
    size_wh: tuple[int, int] | None = None
    pixels: Pixels | None = None

    def __post_init__(self) -> None:
        for name in ("threshold", "nms_iou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} must lie in [0, 1], got {value}")
        for name, choices in (("layout", get_args(Layout)), ("pixels", get_args(Pixels))):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise InputError(f"{name} must be one of {choices}, got {value!r}")
        if self.person_class is not None and self.person_class < 0:
            raise InputError(f"person_class must be 0 or more, got {self.person_class}")
        if self.size_wh is not None and not (
            len(self.size_wh) == 2 and all(isinstance(s, int) and s > 0 for s in self.size_wh)
        ):
            raise InputError(f"size_wh must be two positive integers, got {self.size_wh}")

    def only(self, *names: str, what: str) -> dict[str, Any]:
        """The given ones among `names`; raises InputError when others were set."""
        given = {key: v for key, v in dataclasses.asdict(self).items() if v is not None}
        if others := sorted(given.keys() - set(names)):
            raise InputError(f"{', '.join(others)} cannot be chosen for {what}; leave it out")
        return given
