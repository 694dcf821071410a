"""Engines as Markdown: which graphs became some, and what gpu.sh measured of them on a GPU.

The records are those of studies/engine_builds.py and of benchmarks/gpu_steps.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cfpose_sdk.backends.bundled import BUNDLED_FINDER, bundled_models
from cfpose_sdk.errors import InputError
from cfpose_sdk.files import sha256

Record = Mapping[str, Any]
SCHEMA = 2  # of the files that benchmarks/gpu_steps.py writes
TIMED = ("bench-engines", "bench-onnxruntime", "bench-rtmlib")  # with a report of cfpose-bench
PACKAGES = ("tensorrt", "tensorrt-rtx", "onnxruntime-gpu", "torch", "rtmlib")
_WHY = 200  # letters of a step's reason that are shown
BUILDS = ("model", "graph", "precision", "profiles", "MB", "layers below float32", "seconds")
_LOW = ("float16", "bfloat16", "int8")


def builds_block(record: Record) -> str:
    """A row for each build, or why there is none; which models were replaced since."""
    people, frames = record["people"], record["frames"]
    rows, said = [], []
    for row in record["builds"]:
        if "bytes" in row:
            rows.append(_build(row))
        else:
            said.append(f"{row['model']}, {row['graph']} in {row['precision']}: {row['said']}.")
    profiles = f"{_listed(people)} people and frames from 32 px to {_listed(frames)}"
    lines = [
        f"{record['runtime']}, target {record['target']}, profiles for {profiles}; "
        f"{record['machine']}.",
        "",
        f"| {' | '.join(BUILDS)} |",
        "|---|---|---|" + "---:|" * (len(BUILDS) - 3),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    if said:
        lines += ["", *(f"- {text}" for text in said)]
    if old := _replaced(record):
        lines += ["", f"Recorded before {_listed(old)} was replaced: `make builds` does it anew."]
    return "\n".join(lines)


def _build(row: Record) -> tuple[str, ...]:
    layers = [counts for scope in row["layers"].values() for counts in scope.items()]
    low = sum(count for kind, count in layers if kind in _LOW)
    return (
        row["model"], row["graph"], row["precision"], str(row["profiles"]),
        f"{row['bytes'] / 1e6:.1f}", f"{low} of {sum(count for _, count in layers)}",
        f"{row['seconds']:.0f}",
    )  # fmt: skip


def _replaced(record: Record) -> list[str]:
    """The models of the record whose files are others by now."""
    files = {**bundled_models(), BUNDLED_FINDER.stem: BUNDLED_FINDER}
    now = {name: sha256(path.read_bytes()) for name, path in files.items()}
    recorded = {row["model"]: row["model_sha256"] for row in record["builds"]}
    return [name for name, digest in recorded.items() if now.get(name) != digest]


def _listed(values: Any) -> str:
    *first, last = map(str, values)
    return f"{', '.join(first)} and {last}" if first else last


def gpu_block(records: Sequence[Record]) -> str:
    """Markdown of the records of gpu.sh, a part for each; that nothing was measured without any.

    Raises InputError for a record of another kind or schema.
    """
    if not records:
        return "Not measured: `gpu.sh` has not run on a GPU, so no result of it is here."
    return "\n\n".join("\n".join(_lines(record)) for record in records)


def _lines(record: Record) -> Iterator[str]:
    if record.get("schema") != SCHEMA or "steps" not in record:
        raise InputError(f"this is no result of gpu.sh with schema {SCHEMA}; run it again")
    steps = {name: step for name, step in record["steps"].items() if step["status"] == "done"}
    environment = record["environment"]
    installed = environment.get("packages", {})
    versions = [f"{name} {installed[name]}" for name in PACKAGES if name in installed]
    gpu = environment["gpu"]
    driver = [f"driver {gpu['driver_version']}"] if "driver_version" in gpu else []
    yield f"`{record['model']}` on {gpu['name']} ({', '.join(driver + versions) or 'no versions'})."
    rows = [row for name in TIMED if name in steps for row in _times(steps[name]["figures"])]
    if rows:
        yield from _table(("runtime", "model", "boxes", "ms a photo", "p90", "people: ms"), rows)
    engines = [row for name in steps if name.startswith("engine-") for row in _built(steps[name])]
    if engines:
        yield from _table(("engine", "precision", "MB", "from its graph, px"), engines)
    if "torch" in steps:
        modes = steps["torch"]["figures"]["modes"]
        rows = [_mode(name, mode) for name, mode in modes.items()]
        yield from _table(("W32 in torch", "crops: ms"), rows)
    left = [(n, step) for n, step in record["steps"].items() if step["status"] != "done"]
    if left:
        yield ""
        yield f"Not measured: {'; '.join(f'`{name}` {_reason(step)}' for name, step in left)}."


def _times(report: Record) -> Iterator[tuple[str, ...]]:
    """A row a model and kind of boxes of a report of cfpose-bench."""
    for model in report["models"]:
        total = model["latency_ms"]["total"]
        curve = model.get("people_curve") or []
        people = ", ".join(f"{point['people']}: {point['p50']:.1f}" for point in curve)
        yield (
            model["provider"], f"{model['model']} {model['precision']}", model["boxes"],
            f"{total['p50']:.1f}", f"{total['p90']:.1f}", people or "-",
        )  # fmt: skip


def _built(step: Record) -> Iterator[tuple[str, ...]]:
    """The pose engine and its finder, and what its proof on this GPU found."""
    pose = step["figures"]
    for name, facts in (("pose", pose), ("finder", pose.get("finder"))):
        if facts:
            proof = facts["proof"]
            apart = proof.get("p99_px", proof.get("max_px"))
            far = "not run" if apart is None else f"{apart:.3f}"
            yield name, facts["precision"], f"{facts['engine_bytes'] / 1e6:.1f}", far


def _mode(name: str, mode: Record) -> tuple[str, str]:
    if "ms" not in mode:
        return name, f"failed: {mode.get('failed', 'no reason')[:_WHY]}"
    return name, ", ".join(f"{batch}: {times['p50']:.1f}" for batch, times in mode["ms"].items())


def _reason(step: Record) -> str:
    """Why a step was not done, from the last line that it printed."""
    said = str(step.get("why", "")).strip().splitlines() or ["it does not say why"]
    return f"({step['status']}: {said[-1][:_WHY].replace('|', '/')})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield ""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"
