"""Which second moment of a SimCC distribution tells a joint's error?

    python studies/covariance_choice.py --data-root DATA \\
        --json studies/results/covariance-dev.json

Ten seconds. The bundled model on the development split (COCO train photos with id % 10 == 0) with
annotated boxes; all labelled joints. Moments of the decoder's window and of the whole axis, the
latter of softmax(logits / temperature) and drawn to a circle by an isotropy.

Each candidate is scaled once, so that 39.3 % of all joints lie within 1 sigma (the share of a
two-dimensional Gaussian), and then asked for that share in eight groups of equal size, from the
surest joints to the least sure: a calibrated one says 0.393 in each. `larger_gap` is that of the
shares within 1 and 2 sigma to a Gaussian's under the scale that makes it least, and
`negative_log_likelihood` that of the truth under a Student t of 6 degrees of freedom with the
scale that suits it best: a Gaussian's would be decided by the few joints taken for another's.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from cfpose_bench.accuracy.fits import SHARES, fit_scale
from cfpose_bench.accuracy.reliability import squared_sigmas
from cfpose_bench.data.annotations import read_annotations
from cfpose_export.graph.rules import LOGITS, load_model, read_spec
from cfpose_sdk.arrays import Float64
from cfpose_sdk.crops import crop_transforms, extract_crops, transform_points
from cfpose_sdk.estimator import BUNDLED_MODEL
from cfpose_sdk.files import write_file
from cfpose_sdk.keypoints import SUBBIN_RADIUS_PX, covariance
from cfpose_sdk.media.image import read_image

GROUPS = 8
SHAPES = tuple((t, i) for t in (1.5, 1.0, 0.8, 0.6, 0.4) for i in (0.0, 0.5, 1.0))
FREEDOM = 6.0  # degrees, of the Student t
TRUTHS = ("truth", "labelled", "photo", "map", "area")


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    model = load_model(BUNDLED_MODEL)
    spec = read_spec(model)
    ratio = spec.split_ratio
    found = run(model, arguments.data_root / "coco")
    logits = found[LOGITS[0]], found[LOGITS[1]]
    xy = found["keypoints"]
    candidates = {
        **{
            f"whole axis, temperature {temperature:g}, isotropy {isotropy:g}": covariance(
                *logits, xy, ratio, temperature=temperature, isotropy=isotropy
            )
            for temperature, isotropy in SHAPES
        },
        **{
            f"window of {radius:g} px": windowed(logits, found["coarse"], xy, ratio, radius)
            for radius in (SUBBIN_RADIUS_PX, 4 * SUBBIN_RADIUS_PX)
        },
    }
    labelled = found["labelled"]
    report = {
        "people": len(labelled),
        "joints": int(labelled.sum()),
        "model": "cfpose-s",
        "in_use": {name: getattr(spec, name) for name in ("spread_temperature", "spread_isotropy")},
        "candidates": {
            name: _judged(xy[labelled], matrices[labelled], found["truth"][labelled])
            for name, matrices in candidates.items()
        },
    }
    write_file(arguments.json, (json.dumps(report, indent=2) + "\n").encode())
    print(json.dumps(report, indent=2))


def run(model: onnx.ModelProto, folder: Path) -> dict[str, NDArray[Any]]:
    """Outputs and logits of every annotated person, with the truth in crop pixels.

    Also `photo` (N,) ids, `map` (N, 2, 3) from photo to crop and `area` (N,) in square crop pixels.
    """
    spec = read_spec(model)
    for name in LOGITS:
        kind = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        model.graph.output.append(kind)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    annotations = read_annotations(folder / "person_keypoints_train.json")
    paths = {i["id"]: folder / "images" / "train" / i["file_name"] for i in annotations["images"]}
    rows: dict[str, list[NDArray[Any]]] = {n: [] for n in (*names, *TRUTHS)}
    for person in annotations["annotations"]:
        path = paths[person["image_id"]]
        if person["image_id"] % 10 or not person.get("num_keypoints") or not path.is_file():
            continue
        x, y, width, height = person["bbox"]
        maps = crop_transforms([[x, y, x + width, y + height]], spec.size_wh, spec.box_scale)
        crops = extract_crops(read_image(path), maps, spec.size_wh)
        joints = np.array(person["keypoints"], dtype=np.float64).reshape(1, -1, 3)
        rows["truth"].append(transform_points(maps, joints[..., :2]))
        rows["labelled"].append(joints[..., 2] > 0)
        rows["photo"].append(np.array([person["image_id"]]))
        rows["map"].append(maps)
        rows["area"].append(np.array([person["area"] * maps[0, 0, 0] ** 2]))
        for name, value in zip(names, session.run(None, {"crops": crops}), strict=True):
            rows[name].append(value)
    return {name: np.concatenate(values) for name, values in rows.items()}


def windowed(
    logits: tuple[NDArray[Any], NDArray[Any]],
    centre: Float64,
    xy: Float64,
    ratio: float,
    radius: float,
) -> Float64:
    """The same second moment under the decoder's window of a radius in pixels, about `centre`."""
    matrices = np.zeros((*xy.shape, 2))
    for axis, values in enumerate(logits):
        bins = np.arange(values.shape[-1]) / ratio
        mass = np.exp(values.astype(np.float64) - values.max(axis=-1, keepdims=True))
        mass *= np.maximum(0, 1 - ((bins - centre[..., axis, None]) / radius) ** 2)
        moment = (mass * (bins - xy[..., axis, None]) ** 2).sum(axis=-1) / mass.sum(axis=-1)
        matrices[..., axis, axis] = moment + 1 / (12 * ratio**2)
    return matrices


def _judged(xy: Float64, matrices: Float64, truth: Float64) -> dict[str, Any]:
    squared = squared_sigmas(xy, matrices, truth)
    scale = float(np.quantile(squared, SHARES[0][1]))
    inside = squared <= scale
    order = np.argsort(np.linalg.det(matrices))
    shares = [float(inside[group].mean()) for group in np.array_split(order, GROUPS)]
    return {
        "scale": round(scale, 4),
        "share_within_1_sigma": [round(share, 3) for share in shares],
        "mean_gap": round(float(np.abs(np.array(shares) - SHARES[0][1]).mean()), 4),
        "larger_gap": round(fit_scale(squared)[1], 4),
        "negative_log_likelihood": round(_surprise(squared, matrices), 4),
    }


def _surprise(squared: Float64, matrices: Float64) -> float:
    """Mean negative log-likelihood under a bivariate Student t, at its best scale."""
    areas = 0.5 * np.log(np.linalg.det(matrices)).mean()
    scales = np.exp(np.linspace(-4, 4, 161))
    tails = [(0.5 * FREEDOM + 1) * np.log1p(squared / s / FREEDOM).mean() for s in scales]
    return float((np.array(tails) + np.log(scales)).min() + areas + math.log(2 * math.pi))


if __name__ == "__main__":
    main()
