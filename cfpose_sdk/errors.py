"""The error tree: every failure that a caller can cause or mend.

    CfposeError
    ├── InputError (ValueError)          an argument that cannot be used
    │   ├── ImageError                   a photo that cannot be read, or an array that is no image
    │   ├── BoxError                     person boxes of the wrong shape, order or value
    │   └── DatasetError                 an annotation file or image folder that does not fit
    ├── ArtifactError (ValueError)       a model file: corrupt, foreign, or changed
    │   └── SpecError                    its ModelSpec: missing, malformed, or from a newer cfpose
    ├── MissingDependencyError (ImportError)  an optional package is absent; names the extra
    ├── BackendError (RuntimeError)      a runtime or device that cannot do what was asked
    ├── TrainingError (RuntimeError)     a training run cannot start or go on
    └── ExportError (RuntimeError)       an artifact failed its proof, so it was not written

Every message says what was given, what was expected, and what to do.
"""

from __future__ import annotations

import importlib.util
import sys


class CfposeError(Exception):
    """Root of all errors that cfpose raises on purpose."""


class InputError(CfposeError, ValueError):
    """An argument cannot be used as given."""


class ImageError(InputError):
    """An image cannot be read, or an array is not an image."""


class BoxError(InputError):
    """Person boxes have the wrong shape, order or values."""


class DatasetError(InputError):
    """An annotation file or image folder does not fit the request."""


class ArtifactError(CfposeError, ValueError):
    """A model file is corrupt, or is not a cfpose artifact."""


class SpecError(ArtifactError):
    """A ModelSpec is missing, malformed, or from a newer cfpose."""


class MissingDependencyError(CfposeError, ImportError):
    """An optional package is not installed."""


class BackendError(CfposeError, RuntimeError):
    """A runtime or device cannot do what was asked."""


class TrainingError(CfposeError, RuntimeError):
    """A training run cannot start or cannot go on."""


class ExportError(CfposeError, RuntimeError):
    """An artifact failed its proof, so it was not written."""


def require(*modules: str, extra: str, why: str) -> None:
    """Raise MissingDependencyError unless all `modules` can be found, without importing them.

    `extra` is the extra of cfpose-sdk that brings them; `why` names what needs them.
    """
    missing = [name for name in modules if not is_installed(name)]
    if missing:
        raise MissingDependencyError(
            f"{why} needs {', '.join(missing)}, which is not installed; "
            f"run: pip install 'cfpose-sdk[{extra}]'"
        )


def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is absent, or its import was blocked
        return sys.modules.get(module) is not None
