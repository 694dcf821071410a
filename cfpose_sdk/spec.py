"""ModelSpec and FinderSpec: what an artifact expects and returns.

One spec is written into the checkpoint, copied into the ONNX metadata, and set beside the engine;
nothing about a model is repeated in code.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from cfpose_sdk.crops import Geometry
from cfpose_sdk.errors import InputError, SpecError
from cfpose_sdk.files import FINDER_KEY as FINDER_KEY
from cfpose_sdk.files import SPEC_KEY as SPEC_KEY
from cfpose_sdk.skeleton import Pair, Skeleton

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


@dataclass(frozen=True)
class Start:
    """Weights of others that training began from. Raises SpecError when a field is missing."""

    name: str
    source: str  # where the file comes from; "not stated" where nobody said
    sha256: str  # of the file, in hexadecimal
    license: str

    def __post_init__(self) -> None:
        for label in ("name", "source", "license"):
            value = getattr(self, label)
            if not isinstance(value, str) or not value:
                raise SpecError(f"{label} in started_from must be a text, got {value!r}")
        if not re.fullmatch(r"[0-9a-f]{64}", str(self.sha256)):
            raise SpecError(
                f"sha256 in started_from must be 64 hexadecimal digits, got {self.sha256!r}"
            )

    @classmethod
    def from_records(cls, records: object) -> tuple[Start, ...]:
        """Read the spec's list of JSON objects. Raises SpecError when it is not one."""
        if not isinstance(records, list) or not all(isinstance(each, dict) for each in records):
            raise SpecError(f"started_from must be a list of JSON objects, got {records!r}")
        try:
            return tuple(cls(**record) for record in records)
        except TypeError as error:
            raise SpecError(f"started_from is malformed: {error}") from error


SPEC_VERSION = 8  # of a ModelSpec; versions 1 to 7 are read too
FINDER_VERSION = 2  # version 1 is read too
Decode = Literal["argmax", "subbin"]
Evidence = Literal["peak", "spread"]
Input = Literal["crops", "frame"]
JointLookup = Literal["gridsample", "gather"]
MAX_OKS_WINDOW = 10.0  # by then it is the mean of all bins
MAX_ANTIALIAS = 8  # 64 samples a crop pixel
# of a ModelSpec: the version that brought them
_LATER_KEYS = {
    "covariance_scale": 2, "flip_test": 2, "joint_lookup": 2, "antialias": 2,
    "covariance_odds_power": 3, "evidence": 4, "oks_window": 5,
    "spread_temperature": 6, "spread_isotropy": 6, "geometry": 7, "adopted": 7,
    "started_from": 8,
}  # fmt: skip
_LATER_FINDER_KEYS = {"started_from": 2}
IMAGENET_MEAN_RGB = (0.485, 0.456, 0.406)
IMAGENET_STD_RGB = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelSpec:
    """A pose model's contract. Raises SpecError when a field is out of range."""

    name: str
    skeleton: Skeleton
    size_wh: tuple[int, int]  # crop width, height in pixels
    decode: Decode = "subbin"  # argmax: the paper; subbin: argmax refined by the local centroid
    # the centroid's window, as a multiple of how far OKS forgives that joint of that person;
    # 0: 6 px wide for all. See `cfpose_sdk.keypoints.decode_simcc`
    oks_window: float = 0.0
    input: Input = "crops"
    box_scale: float = 1.25  # the aspect-true box is enlarged by this much
    # where a box lands in its crop: classic: its centre on (W / 2, H / 2), W crop pixels wide; udp:
    # on ((W − 1) / 2, (H − 1) / 2), W − 1 pixels wide; see `cfpose_sdk.crops`
    geometry: Geometry = "classic"
    split_ratio: float = 2.0  # SimCC bins a pixel
    mean_rgb: tuple[float, float, float] = IMAGENET_MEAN_RGB  # of pixels scaled to [0, 1]
    std_rgb: tuple[float, float, float] = IMAGENET_STD_RGB
    # the raw score. peak: the mass of the bins near their peak, as the decoder gives it; spread:
    # the OKS that their spread lets expect, see `cfpose_sdk.keypoints.expected_oks`
    evidence: Evidence = "peak"
    # the moments behind covariance and spread: of softmax(logits / temperature), and drawn to a
    # circle by the isotropy (0: as the axes have them, 1: one); `cfpose_sdk.keypoints.covariance`
    spread_temperature: float = 1.0
    spread_isotropy: float = 0.0
    # confidence = sigmoid(slope * logit(raw score) + intercept), fitted on held-out photos
    calibration: tuple[float, float] = (1.0, 0.0)
    # covariance = scale · (confidence / (1 − confidence))^−power · moments of the bins, both fitted
    # on held-out photos: 39.3 % of the joints are to lie within 1 sigma, 86.5 % within 2
    covariance_scale: float = 1.0
    covariance_odds_power: float = 0.0
    flip_test: bool = False  # the graph averages each crop with its mirror image
    joint_lookup: JointLookup = "gridsample"  # how the refiner reads its maps; same numbers
    antialias: int = 1  # input frame: samples a side of a crop pixel where the person is shrunk
    precision: str = "fp32"
    trained_on: tuple[str, ...] = ()
    license: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    gate: Mapping[str, Any] = field(default_factory=dict)  # the export's proof, summarised
    adopted: Adoption | None = None  # of a foreign network; None for cfpose's own
    started_from: tuple[Start, ...] = ()  # weights of others that training began from

    def __post_init__(self) -> None:
        _check_size(self.size_wh)
        if self.decode not in get_args(Decode):
            raise SpecError(f"decode must be one of {get_args(Decode)}, got {self.decode!r}")
        if not 0 <= self.oks_window <= MAX_OKS_WINDOW or (
            self.oks_window and self.decode == "argmax"
        ):
            raise SpecError(
                f"oks_window must be 0, or up to {MAX_OKS_WINDOW} with decode='subbin'; "
                f"got {self.oks_window!r} with {self.decode!r}"
            )
        if self.evidence not in get_args(Evidence):
            raise SpecError(f"evidence must be one of {get_args(Evidence)}, got {self.evidence!r}")
        if self.input not in get_args(Input):
            raise SpecError(f"input must be one of {get_args(Input)}, got {self.input!r}")
        if self.geometry not in get_args(Geometry):
            raise SpecError(f"geometry must be one of {get_args(Geometry)}, got {self.geometry!r}")
        if self.joint_lookup not in get_args(JointLookup):
            raise SpecError(
                f"joint_lookup must be one of {get_args(JointLookup)}, got {self.joint_lookup!r}"
            )
        if type(self.flip_test) is not bool:
            raise SpecError(f"flip_test must be true or false, got {self.flip_test!r}")
        if type(self.antialias) is not int or not 1 <= self.antialias <= MAX_ANTIALIAS:
            raise SpecError(f"antialias must be 1 to {MAX_ANTIALIAS}, got {self.antialias!r}")
        for label in ("box_scale", "split_ratio", "covariance_scale", "spread_temperature"):
            value = getattr(self, label)
            if not (math.isfinite(value) and value > 0):
                raise SpecError(f"{label} must be a positive number, got {value!r}")
        for label in ("covariance_odds_power", "spread_isotropy"):
            value = getattr(self, label)
            if not 0 <= value <= 1:
                raise SpecError(f"{label} must lie in [0, 1], got {value!r}")
        if (
            len(self.mean_rgb) != 3
            or len(self.std_rgb) != 3
            or not all(s > 0 for s in self.std_rgb)
        ):
            raise SpecError("mean_rgb and std_rgb must hold 3 numbers each, std_rgb positive")
        if len(self.calibration) != 2:
            raise SpecError(f"calibration must be (slope, intercept), got {self.calibration}")

    @property
    def calibrated(self) -> bool:
        """Whether confidence and covariance were fitted on labelled photos."""
        return self.adopted is None or self.adopted.calibrated

    @property
    def bins_xy(self) -> tuple[int, int]:
        """Number of SimCC bins along x and y."""
        width, height = self.size_wh
        return round(width * self.split_ratio), round(height * self.split_ratio)

    @property
    def windows(self) -> tuple[float, ...]:
        """(K,) widths of the centroid's Gaussian windows for a person of area 1; () where fixed."""
        if not self.oks_window:
            return ()
        return tuple(self.oks_window * 2 * sigma for sigma in self.skeleton.oks_sigmas)

    def to_json(self) -> str:
        """One JSON object; the skeleton's tables are top-level keys (see CONTRIBUTING.md)."""
        record = dataclasses.asdict(self)
        skeleton = record.pop("skeleton")
        return json.dumps({"spec_version": SPEC_VERSION, **record, **skeleton}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read what `to_json` wrote. Raises SpecError on anything else."""
        record = _read_record(text, "ModelSpec", SPEC_VERSION, _LATER_KEYS)
        names = {f.name for f in dataclasses.fields(Skeleton)}
        tables = {key: record.pop(key) for key in names if key in record}
        if missing := sorted(names - tables.keys()):
            raise SpecError(f"ModelSpec lacks {missing}; export the model again")
        try:
            skeleton = Skeleton(
                keypoints=tuple(str(name) for name in tables["keypoints"]),
                limbs=_pairs(tables["limbs"]),
                flip_pairs=_pairs(tables["flip_pairs"]),
                oks_sigmas=tuple(float(sigma) for sigma in tables["oks_sigmas"]),
            )
        except (InputError, TypeError, ValueError) as error:
            raise SpecError(f"ModelSpec's keypoint tables are malformed: {error}") from error
        if record.get("adopted") is not None:
            record["adopted"] = Adoption.from_record(record["adopted"])
        if "started_from" in record:
            record["started_from"] = Start.from_records(record["started_from"])
        return cast(ModelSpec, _build(cls, {**record, "skeleton": skeleton}))


@dataclass(frozen=True)
class FinderSpec:
    """A person finder's contract: letterboxed photo in, boxes and scores out."""

    name: str
    size_wh: tuple[int, int]  # letterbox width, height in pixels; top-left aligned
    threshold: float  # boxes scored below are dropped
    nms_iou: float  # of two boxes that overlap more, the lower-scored one is dropped
    pad_value: int = 114  # grey of the letterbox margin
    trained_on: tuple[str, ...] = ()
    license: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    started_from: tuple[Start, ...] = ()  # weights of others that training began from

    def __post_init__(self) -> None:
        _check_size(self.size_wh)
        for label in ("threshold", "nms_iou"):
            value = getattr(self, label)
            if not 0 <= value <= 1:
                raise SpecError(f"{label} must lie in [0, 1], got {value!r}")

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(
            {"spec_version": FINDER_VERSION, **dataclasses.asdict(self)}, sort_keys=True
        )

    @classmethod
    def from_json(cls, text: str) -> FinderSpec:
        """Read what `to_json` wrote. Raises SpecError on anything else."""
        record = _read_record(text, "FinderSpec", FINDER_VERSION, _LATER_FINDER_KEYS)
        if "started_from" in record:
            record["started_from"] = Start.from_records(record["started_from"])
        return cast(FinderSpec, _build(cls, record))


def _read_record(text: str, label: str, newest: int, later: Mapping[str, int]) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"{label} is not JSON: {error}; export the model again") from error
    if not isinstance(record, dict):
        raise SpecError(f"{label} must be a JSON object, got {type(record).__name__}")
    version = record.pop("spec_version", None)
    if not isinstance(version, int) or version < 1:
        raise SpecError(f"{label} has spec_version {version!r}, expected 1..{newest}")
    if version > newest:
        raise SpecError(
            f"{label} has spec_version {version}, this cfpose reads up to {newest}; "
            f"run: pip install --upgrade cfpose-sdk"
        )
    if early := sorted(key for key in record if later.get(key, 1) > version):
        raise SpecError(f"{label} of spec_version {version} has unknown keys {early}")
    return record


def _build(cls: type[ModelSpec] | type[FinderSpec], record: dict[str, Any]) -> object:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(record.keys() - fields.keys()):
        raise SpecError(f"{cls.__name__} has unknown keys {unknown}")
    required = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - record.keys()):
        raise SpecError(f"{cls.__name__} lacks {missing}; export the model again")
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in record.items()
    }
    try:
        return cls(**values)
    except TypeError as error:
        raise SpecError(f"{cls.__name__} is malformed: {error}") from error


def _check_size(size_wh: tuple[int, int]) -> None:
    if len(size_wh) != 2 or not all(isinstance(side, int) and side > 0 for side in size_wh):
        raise SpecError(f"size_wh must be two positive integers (width, height), got {size_wh}")


def _pairs(rows: list[list[int]]) -> tuple[Pair, ...]:
    return tuple((int(a), int(b)) for a, b in rows)
