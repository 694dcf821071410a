"""Arrays and rows → objects of packages that cfpose does not need."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfpose_sdk.errors import MissingDependencyError
from cfpose_sdk.records import ROW_FIELDS

Floats = NDArray[np.floating]


def dataframe(rows: list[dict[str, Any]]) -> Any:
    """A pandas DataFrame of `table_rows`; without rows it has the columns all the same."""
    return _import("pandas").DataFrame(rows, columns=list(ROW_FIELDS))


def key_points(
    xy: Floats,
    confidence: Floats,
    visible: NDArray[np.bool_],
    box_scores: Floats,
    data: dict[str, Any],
) -> Any:
    """supervision.KeyPoints of N people of class 0."""
    return _import("supervision").KeyPoints(
        xy=xy,
        keypoint_confidence=confidence,
        detection_confidence=box_scores,
        visible=visible,
        class_id=np.zeros(len(xy), dtype=int),
        data=data,
    )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"this conversion needs {name}, which cannot be imported ({error}); "
            f"run: pip install {name}"
        ) from error
