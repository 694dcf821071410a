"""Foreign pose networks: which adoption would open one, and `PRESET:FILE` adopted into the cache.

The SDK cannot adopt; `cfpose-export adopt` can, and is run as a child process.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from cfpose_sdk.errors import ArtifactError, require
from cfpose_sdk.files import CACHE_VARIABLE as CACHE_VARIABLE
from cfpose_sdk.files import cache_folder, check_model_file
from cfpose_sdk.files import digest as file_digest

# of `cfpose-export adopt`; the test of the export compares them with its own
PRESETS = ("rtmpose", "rtmw", "simcc-hrnet", "vitpose", "hrnet", "tinypose", "movenet")
_FORMAT = 2  # of what lies in the cache; grows when adoption gives other artifacts
_HEATMAPS = ("hrnet", "vitpose", "tinypose")
_RUN = "import sys; from cfpose_sdk.commands import export; sys.exit(export())"
Shape = Sequence[int | None]


def split_preset(text: str) -> tuple[str, Path] | None:
    """("movenet", Path("F.onnx")) of "movenet:F.onnx"; None for a plain path."""
    preset, separator, rest = text.partition(":")
    return (preset, Path(rest)) if separator and preset in PRESETS else None


def adopted_file(preset: str, path: Path) -> Path:
    """The artifact of a foreign file, from the cache or written there by `cfpose-export adopt`.

    The cache is below $CFPOSE_CACHE, else ~/.cache/cfpose; the name holds the file's hash. The
    licence is recorded as not stated. Raises ArtifactError when the file cannot be adopted,
    MissingDependencyError without the extra adopt.
    """
    check_model_file(path, "a foreign pose network (.onnx)")
    folder = cache_folder("adopted")
    digest = file_digest(path)
    target = folder / f"{path.stem}-{preset}-{digest[:16]}-{_FORMAT}.onnx"
    if target.is_file():
        return target
    require("onnx", "ml_dtypes", extra="adopt", why=f"adopting {path.name}")
    unfinished = target.with_name(f".{uuid.uuid4().hex}.part.onnx")
    words = ["adopt", str(path), "--preset", preset, "--license", "not stated", "--name", path.stem]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", _RUN, *words, "-o", str(unfinished)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().removeprefix("cfpose-export: ")
            raise ArtifactError(f"{path.name} cannot be adopted as {preset}: {said}")
        os.replace(unfinished, target)
    except OSError as error:
        raise ArtifactError(f"the cache {folder} cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def adopt_hint(
    path: Path,
    inputs: Mapping[str, Shape],
    types: Mapping[str, str],
    outputs: Mapping[str, Shape],
) -> str:
    """The command that would make an artifact of a foreign graph, with the preset if it is clear.

    `inputs`, `types` and `outputs`: shapes and types as the runtime names them; what it does not
    know may be missing.
    """
    presets = _fitting(path.stem.lower(), inputs, types, outputs)
    if not presets:
        return "export it with cfpose-export"
    preset = presets[0] if len(presets) == 1 else "|".join(presets)
    target = f"{path.stem}-adopted.onnx"
    return (
        f"to make one of a foreign pose network: cfpose-export adopt {shlex.quote(str(path))} "
        f"--preset {preset} --license LICENCE -o {target}"
    )


def _fitting(
    stem: str,
    inputs: Mapping[str, Shape],
    types: Mapping[str, str],
    outputs: Mapping[str, Shape],
) -> tuple[str, ...]:
    """Presets that the file's shapes allow, the one of its name alone where it says so."""
    plain = stem.replace("-", "").replace("_", "")
    shapes = list(inputs.values())
    if len(shapes) != 1 or len(shapes[0]) != 4:
        return ()
    names = [preset for preset in PRESETS if preset.replace("-", "") in plain]
    if types and "int32" in next(iter(types.values())) and shapes[0][3] == 3:
        return ("movenet",)
    ranks = sorted(len(shape) for shape in outputs.values())
    if ranks == [3, 3]:
        possible: tuple[str, ...] = ("rtmpose", "rtmw", "simcc-hrnet")
        joints = {shape[1] for shape in outputs.values()}
        if len(joints) != 1:
            return ()
        if "simcc-hrnet" not in names and joints <= {17, 26}:
            possible = ("rtmpose", "simcc-hrnet")
    elif 4 in ranks and not _is_detector(outputs):
        possible = _HEATMAPS
    else:
        return tuple(names[:1])
    said = tuple(name for name in names if name in possible)
    return said[-1:] if said else possible


def _is_detector(outputs: Mapping[str, Shape]) -> bool:
    """Levels of a grid, each at half the one before."""
    heights = {shape[2] for shape in outputs.values() if len(shape) == 4}
    return len(outputs) >= 3 and len(heights) >= 3
