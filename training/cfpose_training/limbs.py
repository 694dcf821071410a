"""Weights w_ij of the limbs in the structure loss. The paper does not define them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.crops import crop_transforms, transform_points
from cfpose_sdk.errors import TrainingError
from cfpose_sdk.spec import ModelSpec
from cfpose_training.config import LimbWeights
from cfpose_training.people import People

Float64 = NDArray[np.float64]


def limb_weights(kind: LimbWeights, spec: ModelSpec, people: People) -> Float64:
    """(E,) weights of mean 1, so that the kind does not change the size of the loss.

    inv_sigma: 1 / (sigma_i + sigma_j) of the OKS sigmas. inv_length and inv_var: one over the mean
    and the variance of the limb's length in unaugmented crops. Raises TrainingError when the
    training people do not show a limb often enough.
    """
    limbs = np.array(spec.skeleton.limbs, dtype=np.intp).reshape(-1, 2)
    if kind == "uniform":
        return np.ones(len(limbs))
    if kind == "inv_sigma":
        raw = 1 / np.array(spec.skeleton.oks_sigmas)[limbs].sum(axis=1)
    else:
        mean, variance = limb_lengths(people, spec)
        measure = mean if kind == "inv_length" else variance
        if not (measure > 0).all():  # nan included
            unseen = [spec.skeleton.limbs[i] for i in np.flatnonzero(~(measure > 0))]
            raise TrainingError(
                f"cst_weights = {kind!r} needs every limb labelled in at least two people; "
                f"too rare are {unseen}: use 'uniform' or 'inv_sigma'"
            )
        raw = 1 / measure
    return np.asarray(raw * len(raw) / raw.sum())


def limb_lengths(people: People, spec: ModelSpec) -> tuple[Float64, Float64]:
    """Mean and variance (E,) of each limb's length in pixels of unaugmented crops.

    Only people with both ends labelled count; nan where there are none.
    """
    transforms = crop_transforms(people.boxes, spec.size_wh, spec.box_scale)
    xy = transform_points(transforms, people.joints[..., :2])
    labelled = people.joints[..., 2] > 0
    mean, variance = [], []
    for a, b in spec.skeleton.limbs:
        seen = labelled[:, a] & labelled[:, b]
        lengths = np.linalg.norm(xy[seen, a] - xy[seen, b], axis=1)
        mean.append(lengths.mean() if len(lengths) else np.nan)
        variance.append(lengths.var() if len(lengths) else np.nan)
    return np.array(mean), np.array(variance)
