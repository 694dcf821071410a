"""The resumable state of a run, and the fields and file hashes that must match on resume.

The state is one file, replaced whole. A field is recorded unless a run that is resumed with another
value of it ends as one that had this value from the start. So the folder, the cache, threads,
workers and the number of devices are not recorded, nor names and terms in the artifact.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cfpose_sdk.errors import TrainingError
from cfpose_sdk.files import digest

Record = dict[str, str]
# Of [stage1] and its like: how samples are loaded, and how gradients are computed that are the
# same.
FREE_OPTIM_FIELDS = frozenset({"workers", "checkpointing"})
# Options that came after runs had been recorded, and the value with which a run is as it was
# before: a state that lacks one may go on with that.
LATER_OPTIONS = {
    "turn_p": "0.0", "movenet": "None", "head": "'simcc'",
    "accumulate": "1", "channels_last": "True", "compile": "False",
    "arithmetic": "'cfpose'", "oks_window": "0.0", "loss": "'l1'",
}  # fmt: skip


# Options that are gone, and the value with which a run was as every run is now: a state that has
# another one cannot go on.
REMOVED_OPTIONS = {
    "cst_ratio": "1.0", "logit_temperature": "1.0", "alpha_auto_batches": "20",
    "integral_head": "False", "weight": "1.0", "quality_p": "0.0",
}  # fmt: skip


def recorded(value: object, name: str, free: frozenset[str] = frozenset()) -> Record:
    """Names, as a recipe spells them, and values of all fields of `value` that are not `free`."""
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.name not in free]
        parts = {f"{name}.{field}": getattr(value, field) for field in fields}
    elif isinstance(value, tuple) and any(dataclasses.is_dataclass(item) for item in value):
        parts = {f"{name}[{index}]": item for index, item in enumerate(value)}
    else:
        return {name: repr(value)}
    return {
        key: text
        for part, item in parts.items()
        for key, text in recorded(item, part, free).items()
    }


def recorded_files(files: Mapping[str, Path | None]) -> Record:
    """A digest of each file's content, wherever the file lies. None: there is no file.

    Raises TrainingError for a file that cannot be read.
    """
    return {name: "none" if path is None else _digest(path) for name, path in files.items()}


def differences(made: Mapping[str, str], asked: Mapping[str, str]) -> list[str]:
    """One line for each name whose value differs, or that only one side has.

    An option that is newer than `made` differs only when it is on, and one that is gone when it was
    on.
    """
    off = {
        name: value
        for name, value in asked.items()
        if name not in made and value == LATER_OPTIONS.get(name.rpartition(".")[2])
    }
    gone = {name for name in made.keys() - asked.keys() if _is_removed(name)}
    was_off = {name for name in gone if made[name] == REMOVED_OPTIONS[name.rpartition(".")[2]]}
    made = {name: value for name, value in {**made, **off}.items() if name not in was_off}
    names = dict.fromkeys([*made, *asked])
    return [
        f"{name} was {made.get(name, 'not there')}, now "
        + ("no option any more" if name in gone else asked.get(name, "not there"))
        for name in names
        if made.get(name) != asked.get(name)
    ]


def _is_removed(name: str) -> bool:
    return name.rpartition(".")[2] in REMOVED_OPTIONS


def _digest(path: Path) -> str:
    try:
        return f"a file with SHA-256 {digest(path)[:16]}"
    except OSError as error:
        raise TrainingError(f"cannot read {path}: {error.strerror}") from error


STATE_FILE = "state.pt"
RECORD_KEY = "record"
State = dict[str, Any]  # tensors, numbers and texts alone


def save_state(folder: Path, state: State, record: Record) -> None:
    """Write the state of a run, whole or not at all. Raises TrainingError when it cannot be."""
    # not cfpose_sdk.files: this name lets a resumed run find and remove what was left half written
    path, temporary = folder / STATE_FILE, folder / f".{STATE_FILE}.{os.getpid()}"
    try:
        torch.save({**state, RECORD_KEY: record}, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise TrainingError(
            f"cannot save {path}: {error}; free some space, then pass --resume to go on from the "
            f"last saved state"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_state(folder: Path, record: Record, *, resume: bool) -> State | None:
    """The state of the run in `folder`; None when there is none.

    Raises TrainingError when it may not be resumed, cannot be read, or is that of another run,
    naming every field that differs from `record`.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    if not resume:
        raise TrainingError(f"{folder} holds a run already; pass --resume to go on with it")
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
        made = state.get(RECORD_KEY)
    except Exception as error:  # a torn file makes the unpickler fail in any way
        raise TrainingError(
            f"{path} is not the state of a run ({type(error).__name__}: {error}); "
            f"give another --out"
        ) from error
    if not isinstance(made, dict):
        raise TrainingError(
            f"{path} does not say what it was made with: an older cfpose wrote it; finish that run "
            f"with the version that began it, or give another --out"
        )
    if changed := differences(made, record):
        raise TrainingError(
            f"{path} was made with another recipe or other files: {'; '.join(changed)}; "
            f"go on with what it was made with, or give another --out"
        )
    return state


def remove_torn_states(folder: Path) -> None:
    """Remove the half-written states of a process that was killed while saving."""
    for torn in folder.glob(f".{STATE_FILE}.*"):
        torn.unlink(missing_ok=True)
