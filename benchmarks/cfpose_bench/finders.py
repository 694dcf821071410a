"""A person finder whose people are counted: exactly N, whatever a photo shows."""

from __future__ import annotations

import numpy as np

from cfpose_sdk.detector import Detections, OpenDetector, as_detections
from cfpose_sdk.errors import InputError
from cfpose_sdk.image import Image


class CountedFinder:
    """Runs an opened finder; with `people` set, its boxes are repeated or cut to that many.

    The boxes are taken by falling score, and from the first again when they are too few. It owns
    and closes the finder. Raises InputError when people are to be repeated and none are found.
    """

    def __init__(self, finder: OpenDetector) -> None:
        self._finder = finder
        self.people: int | None = None  # None: those that are found

    def __call__(self, image: Image) -> Detections:
        """People in a BGR image."""
        found = as_detections(self._finder(image))
        if self.people is None:
            return found
        if len(found) == 0:
            raise InputError("the finder found nobody to repeat; take another photo")
        boxes = np.resize(found.boxes, (self.people, 4))
        return Detections(boxes, np.resize(found.scores, self.people))

    def close(self) -> None:
        """Free the finder."""
        self._finder.close()
