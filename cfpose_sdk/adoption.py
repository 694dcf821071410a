"""What an adopted artifact says of the foreign network inside it, and of how its answer is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from cfpose_sdk.errors import SpecError

Family = Literal["heatmap", "simcc", "coordinates"]
# how a family's answer becomes coordinates; see `cfpose_export.adopt`
Reading = Literal["argmax", "shift", "dark", "dark-udp", "window", "subbin", "given"]

READINGS: Mapping[Family, tuple[Reading, ...]] = {
    "heatmap": ("argmax", "shift", "dark", "dark-udp", "window"),
    "simcc": ("argmax", "subbin"),
    "coordinates": ("given",),
}


@dataclass(frozen=True)
class Adoption:
    """Where an adopted network comes from, and how it is read.

    `settings` holds what the options of `cfpose-export adopt` decided: colour order, mean and
    standard deviation, layout, blur, scores. Raises SpecError when a field is out of range.
    """

    family: Family
    decode: Reading
    preset: str
    source: str  # the file's name
    sha256: str  # of the file, in hexadecimal
    calibrated: bool = False  # whether confidence and covariance were fitted on labelled photos
    batch: int = 0  # crops that one run takes, no fewer and no more; 0: any number
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise SpecError(f"family must be one of {get_args(Family)}, got {self.family!r}")
        if self.decode not in READINGS[self.family]:
            raise SpecError(
                f"decode of a {self.family} network must be one of {READINGS[self.family]}, got "
                f"{self.decode!r}"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", str(self.sha256)):
            raise SpecError(f"sha256 must be 64 hexadecimal digits, got {self.sha256!r}")
        if type(self.calibrated) is not bool:
            raise SpecError(f"calibrated must be true or false, got {self.calibrated!r}")
        if type(self.batch) is not int or self.batch < 0:
            raise SpecError(f"batch must be 0 or a number of crops, got {self.batch!r}")

    @classmethod
    def from_record(cls, record: object) -> Adoption:
        """Read the spec's JSON object. Raises SpecError when it is not one."""
        if not isinstance(record, dict):
            raise SpecError(f"adopted must be a JSON object, got {type(record).__name__}")
        try:
            return cls(**record)
        except TypeError as error:
            raise SpecError(f"adopted is malformed: {error}") from error
