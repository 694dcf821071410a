"""Does every graph of the bundled models become an engine? Built by TensorRT-RTX, without a GPU.

    nice -n 5 python studies/engine_builds.py export/results/engine-builds.json

Some 15 minutes on two cores. Graphs: each pose model on crops and on frames, the finder on
letterboxes and on frames, in float32, in fp16, and pose models in int8 where the gate of
`cfpose-export lower` lets them; with the profiles that `cfpose-export engine` has by
default, and one target, SM 8.9. Each build is written as it ends, and what is there already, of the
same graph, options and TensorRT, is not built again: a run that was stopped goes on. `--model`
takes one model alone. `make tables` then writes the table of docs/engine-options.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from cfpose_export.engines.build import engine_key
from cfpose_export.engines.options import BuildOptions
from cfpose_export.engines.tensorrt import build
from cfpose_export.graph.frame_finder import frame_finder
from cfpose_export.graph.frame_input import frame_graph
from cfpose_export.graph.half_weights import whole_weights
from cfpose_export.graph.rules import load_model, model_path, read_spec
from cfpose_export.precision.deployed import typed_graph
from cfpose_export.precision.gate import LIMITS, builder, examine
from cfpose_export.precision.int8 import calibrate_on_people
from cfpose_export.proof.crops import read_hard
from cfpose_sdk.backends.bundled import BUNDLED_FINDER, bundled_models
from cfpose_sdk.backends.tensorrt.library import NAMES, open_flavour
from cfpose_sdk.errors import ExportError
from cfpose_sdk.files import sha256, write_file

OPTIONS = BuildOptions(flavour="rtx", targets=("8.9",))
FINDER = BUNDLED_FINDER.stem
Row = dict[str, Any]


@dataclass(frozen=True)
class Lowered:
    """A model in a precision; `graph` is None where the gate refuses it, and `said` why."""

    precision: str
    graph: onnx.ModelProto | None
    said: str = ""


def lowered_models(name: str) -> Iterator[Lowered]:
    """A bundled model in each precision that it is built in."""
    model = load_model(_file(name))
    yield Lowered("fp32", model)
    yield Lowered("fp16", typed_graph(model, "fp16"))
    if name != FINDER:
        yield _quantised(model)


def _quantised(model: onnx.ModelProto) -> Lowered:
    """int8 as `cfpose-export lower` would write it, or what its gate says against it."""
    reference = whole_weights(model)
    build_int8 = builder(reference, "int8", calibrate_on_people(reference, None))
    proof = read_hard(None, read_spec(reference))
    candidate, report = examine(reference, build_int8, "int8", proof, LIMITS["int8"], blame=False)
    if report.problems:
        return Lowered("int8", None, f"refused by the gate: {'; '.join(report.problems)}")
    return Lowered("int8", candidate.model)


def record(path: Path, models: list[str]) -> None:
    """Build what is missing, and write the file after each build."""
    rows: dict[tuple[str, str, str], Row] = {}
    if path.exists():
        rows = {_place(row): row for row in json.loads(path.read_text(encoding="utf-8"))["builds"]}
    for name in models:
        file = sha256(_file(name).read_bytes())
        new: set[tuple[str, str, str]] = set()
        for lowered in lowered_models(name):
            facts = {"model": name, "model_sha256": file, "precision": lowered.precision}
            for row in _built(lowered, facts, list(rows.values())):
                rows[_place(row)] = row
                new.add(_place(row))
                _write(path, rows)
        rows = {place: row for place, row in rows.items() if place[0] != name or place in new}
        _write(path, rows)


def _file(name: str) -> Path:
    return model_path("default-finder" if name == FINDER else name)


def _place(row: Row) -> tuple[str, str, str]:
    return row["model"], row["precision"], row["graph"]


def _built(lowered: Lowered, facts: Row, before: list[Row]) -> Iterator[Row]:
    """The builds of a lowered model: of its own graph, and of the graph on frames."""
    if lowered.graph is None:
        yield {**facts, "graph": "pose", "said": lowered.said}
        return
    if facts["model"] == FINDER:
        graphs = {
            "finder on letterboxes": lowered.graph, "finder on frames": frame_finder(lowered.graph)
        }  # fmt: skip
    else:
        graphs = {"pose on crops": lowered.graph, "pose on frames": frame_graph(lowered.graph)}
    for graph_name, graph in graphs.items():
        key = engine_key(graph, OPTIONS)
        kept = next((row for row in before if row.get("key") == key), None)
        if kept is not None:
            yield {**kept, **facts}
            continue
        row = {**facts, "graph": graph_name, "key": key}
        print(f"{facts['model']}, {graph_name}, {facts['precision']}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            built = build(graph, "rtx", OPTIONS, lambda line: print(f"  {line}", file=sys.stderr))
        except ExportError as error:
            yield {**row, "said": str(error)}
            continue
        layers = {
            scope: {kind: sum(counts.values()) for kind, counts in kinds.items()}
            for scope, kinds in built.achieved.items()
        }
        seconds = round(time.perf_counter() - start, 1)
        yield {**row, "bytes": len(built.engine), "seconds": seconds,
               "profiles": len(built.profiles), "layers": layers}  # fmt: skip


def _write(path: Path, rows: Mapping[tuple[str, str, str], Row]) -> None:
    order = [*bundled_models(), FINDER]  # of what is bundled no more nothing is kept
    content = {
        "runtime": f"{NAMES['rtx']} {open_flavour('rtx', 'this study').__version__}",
        "target": f"SM {OPTIONS.targets[0]}",
        "people": OPTIONS.people,
        "frames": [f"{width}x{height}" for width, height in OPTIONS.frames],
        "machine": f"{os.cpu_count()} cores, with other work: seconds are no times to compare",
        "builds": sorted(
            (row for row in rows.values() if row["model"] in order),
            key=lambda row: order.index(row["model"]),
        ),
    }
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def main() -> None:
    """Build, and write the JSON."""
    names = [*bundled_models(), FINDER]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("--model", action="append", choices=names, help="one model only")
    arguments = parser.parse_args()
    record(arguments.json, arguments.model or names)


if __name__ == "__main__":
    main()
