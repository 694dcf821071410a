"""The spec travels unchanged, and a foreign one is refused with the reason."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from cfpose_sdk.errors import ArtifactError, InputError, SpecError
from cfpose_sdk.skeleton import COCO_17, CROWDPOSE_14, Skeleton
from cfpose_sdk.spec import FINDER_VERSION, SPEC_VERSION, Adoption, FinderSpec, ModelSpec, Start

FULL = ModelSpec(
    name="full",
    skeleton=CROWDPOSE_14,
    size_wh=(288, 384),
    decode="subbin",
    oks_window=1.5,
    input="frame",
    box_scale=1.3,
    split_ratio=3.0,
    mean_rgb=(0.1, 0.2, 0.3),
    std_rgb=(0.4, 0.5, 0.6),
    calibration=(0.7, -0.3),
    covariance_scale=0.6,
    covariance_odds_power=0.2,
    evidence="spread",
    spread_temperature=0.6,
    spread_isotropy=0.5,
    flip_test=True,
    joint_lookup="gather",
    antialias=2,
    precision="fp16",
    trained_on=("a", "b"),
    license="Apache-2.0",
    metrics={"AP": 0.1},
    gate={"max_px": 0.01, "photos": ["x.jpg"]},
    geometry="udp",
    adopted=Adoption(
        "heatmap", "dark", "tinypose", "t.onnx", "0a" * 32, True, 4, {"blur": [3, 0.8]}
    ),
    started_from=(Start("trunk", "https://x.example/t", "0b" * 32, "Apache-2.0"),),
)
FINDER = FinderSpec(
    name="f",
    size_wh=(416, 416),
    threshold=0.3,
    nms_iou=0.6,
    trained_on=("c",),
    started_from=(
        Start("body", "not stated", "0c" * 32, "not stated"),
        Start("neck", "not stated", "0d" * 32, "MIT"),
    ),
)


@pytest.mark.parametrize("spec", [FULL, ModelSpec("plain", COCO_17, (192, 256)), FINDER])
def test_round_trip(spec: ModelSpec | FinderSpec) -> None:
    assert type(spec).from_json(spec.to_json()) == spec


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6, 7])
def test_earlier_versions_are_read_with_the_defaults(version: int) -> None:
    record = json.loads(ModelSpec("old", COCO_17, (192, 256)).to_json()) | {"spec_version": version}
    del record["started_from"]
    if version < 7:
        del record["geometry"], record["adopted"]
    if version < 6:
        del record["spread_temperature"], record["spread_isotropy"]
    if version < 5:
        del record["oks_window"]
    if version < 4:
        del record["evidence"]
    if version < 3:
        del record["covariance_odds_power"]
    if version == 1:
        for key in ("covariance_scale", "flip_test", "joint_lookup", "antialias"):
            del record[key]
    assert ModelSpec.from_json(json.dumps(record)) == ModelSpec("old", COCO_17, (192, 256))


def test_a_finder_of_version_1_is_read_with_the_defaults() -> None:
    record = json.loads(FINDER.to_json()) | {"spec_version": 1}
    with pytest.raises(SpecError, match=r"spec_version 1 has unknown keys \['started_from'\]"):
        FinderSpec.from_json(json.dumps(record))
    del record["started_from"]
    read = FinderSpec.from_json(json.dumps(record))
    assert read == dataclasses.replace(FINDER, started_from=())


def test_the_page_of_the_browser_reads_the_newest(root: Path) -> None:
    script = (root / "examples" / "browser" / "artifact.js").read_text(encoding="utf-8")
    newest = (
        f'const NEWEST = {{ "cfpose.spec": {SPEC_VERSION}, "cfpose.finder": {FINDER_VERSION} }};'
    )
    assert newest in script


def test_json_has_the_promised_keys() -> None:
    promised = {
        "spec_version", "name", "decode", "input", "size_wh", "box_scale", "split_ratio",
        "keypoints", "limbs", "flip_pairs", "oks_sigmas", "precision", "trained_on", "license",
        "metrics", "gate",
    }  # fmt: skip
    assert promised <= json.loads(FULL.to_json()).keys()


def test_windows_are_those_that_oks_forgives() -> None:
    assert ModelSpec("plain", COCO_17, (192, 256)).windows == ()
    assert FULL.windows == tuple(1.5 * 2 * sigma for sigma in CROWDPOSE_14.oks_sigmas)


def test_bins() -> None:
    assert FULL.bins_xy == (864, 1152)


def changed(spec: ModelSpec | FinderSpec = FULL, drop: str = "", **values: Any) -> str:
    record = {**json.loads(spec.to_json()), **values}
    record.pop(drop, None)
    return json.dumps(record)


def started(**values: Any) -> str:
    return changed(started_from=[{**json.loads(FULL.to_json())["started_from"][0], **values}])


def adopted(**values: Any) -> str:
    return changed(adopted={**json.loads(FULL.to_json())["adopted"], **values})


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (changed(spec_version=SPEC_VERSION + 1), "upgrade"),
        (changed(drop="spec_version"), "spec_version None"),
        (changed(spec_version="1"), "spec_version '1'"),
        (changed(colour="red"), r"unknown keys \['colour'\]"),
        (changed(drop="size_wh"), r"lacks \['size_wh'\]"),
        (changed(drop="limbs"), r"lacks \['limbs'\]"),
        (changed(size_wh=[192]), "size_wh"),
        (changed(size_wh=[192, -1]), "size_wh"),
        (changed(size_wh=[192.5, 256]), "size_wh"),
        (changed(decode="softmax"), "decode must be one of"),
        (changed(input="video"), "input must be one of"),
        (changed(box_scale=0), "box_scale"),
        (changed(box_scale="big"), "malformed"),
        (changed(std_rgb=[1, 0, 1]), "std_rgb"),
        (changed(calibration=[1]), "calibration"),
        (changed(covariance_scale=0), "covariance_scale"),
        (changed(covariance_odds_power=-0.1), "covariance_odds_power"),
        (changed(covariance_odds_power=float("nan")), "covariance_odds_power"),
        (changed(spread_temperature=0), "spread_temperature must be a positive"),
        (changed(spread_isotropy=1.1), r"spread_isotropy must lie in \[0, 1\]"),
        (changed(flip_test=1), "flip_test"),
        (changed(joint_lookup="conv"), "joint_lookup must be one of"),
        (changed(oks_window=-1), "oks_window must be"),
        (changed(oks_window=float("nan")), "oks_window must be"),
        (changed(decode="argmax"), "oks_window must be 0, or up to 10.0 with decode='subbin'"),
        (changed(antialias=0), "antialias must be 1 to 8"),
        (changed(antialias=2.0), "antialias must be 1 to 8"),
        (
            changed(spec_version=1),
            r"spec_version 1 has unknown keys \['adopted', 'antialias', 'cov",
        ),
        (
            changed(spec_version=2),
            r"spec_version 2 has unknown keys \['adopted', 'covariance_odds_power'",
        ),
        (changed(spec_version=6), r"spec_version 6 has unknown keys \['adopted', 'geometry', 'sta"),
        (changed(spec_version=7), r"spec_version 7 has unknown keys \['started_from'\]"),
        (changed(started_from={}), "started_from must be a list of JSON objects"),
        (changed(started_from=["MoveNet"]), "started_from must be a list of JSON objects"),
        (changed(started_from=[{"name": "MoveNet"}]), "started_from is malformed"),
        (started(sha256="0"), "sha256 in started_from must be 64"),
        (started(license=""), "license in started_from must be a text"),
        (started(name=7), "name in started_from must be a text"),
        (started(author="me"), "started_from is malformed"),
        (changed(geometry="udq"), "geometry must be one of"),
        (changed(adopted="x"), "adopted must be a JSON object"),
        (changed(adopted={}), "adopted is malformed"),
        (adopted(family="bottom-up"), "family must be one of"),
        (adopted(decode="subbin"), "decode of a heatmap network must be one of"),
        (adopted(sha256="0"), "64 hexadecimal digits"),
        (adopted(batch=-1), "batch must be 0 or"),
        (adopted(calibrated=1), "calibrated must be"),
        (adopted(author="me"), "adopted is malformed"),
        (changed(limbs=[[0, 99]]), "limbs must join"),
        (changed(limbs=[[0, 1, 2]]), "malformed"),
        (changed(oks_sigmas=[0.1]), "oks_sigmas"),
        (changed(keypoints=None), "malformed"),
        ("[]", "must be a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_bad_specs_are_refused(text: str, cause: str) -> None:
    with pytest.raises(SpecError, match=cause):
        ModelSpec.from_json(text)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (changed(FINDER, spec_version=99), "upgrade"),
        (changed(FINDER, threshold=1.5), "threshold"),
        (changed(FINDER, drop="nms_iou"), "nms_iou"),
        (changed(FINDER, size_wh=[0, 1]), "size_wh"),
    ],
)
def test_bad_finder_specs_are_refused(text: str, cause: str) -> None:
    with pytest.raises(SpecError, match=cause):
        FinderSpec.from_json(text)


def test_spec_errors_are_artifact_and_value_errors() -> None:
    assert issubclass(SpecError, ArtifactError)
    assert issubclass(SpecError, ValueError)
    with pytest.raises(SpecError):
        dataclasses.replace(FULL, split_ratio=float("nan"))


@pytest.mark.parametrize("skeleton", [COCO_17, CROWDPOSE_14])
def test_skeleton_tables_agree(skeleton: Skeleton) -> None:
    order = skeleton.flip_order
    assert (order[order] == range(len(skeleton))).all()
    for a, b in skeleton.flip_pairs:
        left, right = skeleton.keypoints[a], skeleton.keypoints[b]
        assert left.startswith("left_")
        assert right == left.replace("left_", "right_")
        assert skeleton.oks_sigmas[a] == skeleton.oks_sigmas[b]
    paired = {joint for pair in skeleton.flip_pairs for joint in pair}
    for joint in set(range(len(skeleton))) - paired:
        assert not skeleton.keypoints[joint].startswith(("left_", "right_"))
    # mirroring maps limbs onto limbs, and every joint is linked to the rest
    limbs = {frozenset(limb) for limb in skeleton.limbs}
    assert {frozenset(int(order[j]) for j in limb) for limb in limbs} == limbs
    reached = {0}
    for _ in skeleton.keypoints:
        reached |= {joint for limb in limbs if limb & reached for joint in limb}
    assert len(reached) == len(skeleton)


def test_coco_numbers() -> None:
    pycocotools = pytest.importorskip("pycocotools.cocoeval")
    official = pycocotools.Params(iouType="keypoints").kpt_oks_sigmas
    assert COCO_17.oks_sigmas == pytest.approx(official.tolist())
    assert len(CROWDPOSE_14) == 14


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"keypoints": ("a", "a", "c")}, "unique"),
        ({"keypoints": ()}, "non-empty"),
        ({"oks_sigmas": (0.1, 0.1)}, "3 positive numbers"),
        ({"oks_sigmas": (0.1, 0.1, -1.0)}, "3 positive numbers"),
        ({"oks_sigmas": (0.1, 0.1, float("nan"))}, "3 positive numbers"),
        ({"limbs": ((0, 3),)}, "limbs must join"),
        ({"limbs": ((1, 1),)}, "limbs must join"),
        ({"flip_pairs": ((-1, 0),)}, "flip_pairs must join"),
        ({"flip_pairs": ((0, 1), (1, 2))}, "one flip pair only"),
    ],
)
def test_contradicting_tables_are_refused(changes: dict[str, Any], cause: str) -> None:
    good: dict[str, Any] = {
        "keypoints": ("a", "b", "c"),
        "limbs": ((0, 1),),
        "flip_pairs": ((1, 2),),
        "oks_sigmas": (0.1, 0.1, 0.1),
    }
    Skeleton(**good)
    with pytest.raises(InputError, match=cause):
        Skeleton(**{**good, **changes})
