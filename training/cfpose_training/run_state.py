"""The resumable state of a run: one file, replaced whole, that says what the run was made from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from cfpose_sdk.errors import TrainingError
from cfpose_training.run_record import Record, differences

STATE_FILE = "state.pt"
RECORD_KEY = "record"

State = dict[str, Any]  # tensors, numbers and texts alone


def save_state(folder: Path, state: State, record: Record) -> None:
    """Write the state of a run, whole or not at all. Raises TrainingError when it cannot be."""
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
    """Remove what a process that was killed while saving left half written."""
    for torn in folder.glob(f".{STATE_FILE}.*"):
        torn.unlink(missing_ok=True)
