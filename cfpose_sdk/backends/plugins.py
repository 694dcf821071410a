"""Runtimes of other installed packages, found by the suffix of the file.

A package registers one as an entry point of the group `cfpose.backends`: its name is the suffix
without the dot, its object takes (path, *, device, threads, options, allow_fallback) as
`open_backend` does, and gives a Backend. cfpose_training registers its checkpoints so.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from cfpose_sdk.backends.base import Backend, Device, RuntimeOptions
from cfpose_sdk.errors import ArtifactError, BackendError, MissingDependencyError

GROUP = "cfpose.backends"
CHECKPOINT = ".safetensors"  # of the extra train


def plugin_suffixes() -> tuple[str, ...]:
    """The suffixes that installed packages open, as ".safetensors"."""
    return tuple(sorted({f".{entry.name.lower()}" for entry in entry_points(group=GROUP)}))


def plugin_states() -> dict[str, str]:
    """Suffix → the package that opens it, or why that package cannot be imported."""
    states = {}
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
            states[f".{entry.name.lower()}"] = f"opens with {entry.module.partition('.')[0]}"
        except Exception as error:  # importing another package can raise anything
            states[f".{entry.name.lower()}"] = " ".join(str(error).split())[:300]
    return states


def open_plugin(
    path: Path,
    *,
    device: Device,
    threads: int | None,
    options: RuntimeOptions,
    allow_fallback: bool,
) -> Backend:
    """Open a file with the package that registered its suffix.

    Raises MissingDependencyError when what that package needs is absent, ArtifactError when two
    packages registered the suffix, BackendError when the package cannot be imported or gives no
    Backend.
    """
    entry = _entry(path)
    try:
        factory = entry.load()
    except MissingDependencyError:
        raise
    except (ImportError, AttributeError) as error:
        raise BackendError(
            f"{path.name} is opened by {entry.value}, which cannot be imported ({error}); install "
            f"that package again"
        ) from error
    backend = factory(
        path, device=device, threads=threads, options=options, allow_fallback=allow_fallback
    )
    if not isinstance(backend, Backend):
        raise BackendError(
            f"{entry.value} gave a {type(backend).__name__} for {path.name}; expected a Backend of "
            f"cfpose_sdk.backends"
        )
    return backend


def _entry(path: Path) -> EntryPoint:
    suffix = path.suffix.lower()
    matching = {
        entry.value: entry
        for entry in entry_points(group=GROUP)
        if f".{entry.name.lower()}" == suffix
    }
    if not matching:
        raise MissingDependencyError(
            f"running the checkpoint {path.name} needs cfpose_training, which is not installed; "
            f"run: pip install 'cfpose-sdk[train]'"
        )
    if len(matching) > 1:
        raise ArtifactError(
            f"{path.name} is opened by several packages, {sorted(matching)}; uninstall all but one"
        )
    (entry,) = matching.values()
    return entry
