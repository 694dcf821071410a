"""Write the tables of the documents from committed reports, so that no figure is typed by hand.

`python -m cfpose_bench.tables REPORT.json README.md [...]` rewrites what stands between
`<!-- results:begin -->` and `<!-- results:end -->` in each document, or, for the record of
`cfpose-bench runtimes`, between the same marks of `runtimes`, and for that of
`studies/frame_input.py` of `frame`, for that of `studies/engine_builds.py` of `builds`, or, for a
folder of model files, of `files`. A folder with `runtimes-KIND.json` gives the records of all kinds
of CPUs side by side. A pattern, `'results/gpu-*.json'`, stands for all that gpu.sh wrote, also for
nothing, and fills the marks of `gpu`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cfpose_bench.report.bundled_files import files_block
from cfpose_bench.report.engines import builds_block, gpu_block
from cfpose_bench.runtimes.tables import runtimes_block
from cfpose_sdk.errors import InputError
from cfpose_sdk.files import write_file

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
RUNTIMES = ("<!-- runtimes:begin -->", "<!-- runtimes:end -->")
FRAME = ("<!-- frame:begin -->", "<!-- frame:end -->")
FILES = ("<!-- files:begin -->", "<!-- files:end -->")
BUILDS = ("<!-- builds:begin -->", "<!-- builds:end -->")
GPU = ("<!-- gpu:begin -->", "<!-- gpu:end -->")
HEAD = ("model", "boxes", "AP", "95 % interval", "AP50", "AP75", "AR", "ms a photo", "MB")


def results_block(report: Mapping[str, Any]) -> str:
    """Markdown of one report: a sentence on what was measured where, and a row for each model."""
    protocol, environment = report["protocol"], report["environment"]
    threads = (
        protocol.get("threads") or environment.get("omp_num_threads") or environment["cpu_count"]
    )
    onnxruntime = environment["packages"]["onnxruntime"]
    lines = [
        f"COCO keypoint AP on {protocol['images']} photos of `{protocol['dataset']}` "
        f"({protocol['instances']} people), one run, onnxruntime {onnxruntime} FP32 on "
        f"{environment['cpu']} with {threads} threads. Boxes: `gt` is the annotated ones, "
        f"`detector` those of our own finder{_files(protocol)}. Time is the median of a whole "
        f"photo with all its people, reading and finding included{_untimed(protocol)}."
        f"{_box_quality(protocol)}",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|---|---|" + "---:|" * (len(HEAD) - 2),
    ]
    lines += ["| " + " | ".join(_row(model)) + " |" for model in report["models"]]
    if any("macs" in model for model in report["models"]):
        lines += ["", _costs(report["models"])]
    return "\n".join(lines)


def frame_block(record: Mapping[str, Any]) -> str:
    """Markdown of `studies/frame_input.py`: accuracy by who samples the crops, memory."""
    memory = record["peak_rss_mib_3840x2160"]
    lines = [
        f"{record['people']} people of {record['photos']} development photos, annotated boxes, "
        f"{record['model']}, OpenCV {record['opencv']}; `oks` is that of the "
        f"{record['people_shrunk']} people who are shrunk by more than √2:",
        "",
        "| crops | AP | AP75 | oks |",
        "|---|---:|---:|---:|",
    ]
    for name, row in record["accuracy"].items():
        figures = [f"{row[key]:.4f}" for key in ("AP", "AP75", "oks_shrunk")]
        lines.append(f"| {' | '.join([_sampler(name), *figures])} |")
    lines += [
        "",
        "| one frame of 3840 × 2160 | people | peak of the process, MiB |",
        "|---|---:|---:|",
    ]
    for key, mib in memory.items():
        name, _, people = key.removesuffix(" people").rpartition(", ")
        lines.append(f"| {_sampler(name)} | {people} | {mib} |")
    return "\n".join(lines)


def _sampler(name: str) -> str:
    """A row's name in the record, as the documents say it."""
    names = {"cv2": "OpenCV, bilinear", "area": "OpenCV, `INTER_AREA` first"}
    return names.get(name) or f"the graph, `--{name.removeprefix('frame, ')}`"


def _file_names(protocol: Mapping[str, Any]) -> list[str]:
    return [name for name in protocol["boxes"].split("+") if name not in ("gt", "detector")]


def _files(protocol: Mapping[str, Any]) -> str:
    return "".join(f", `{name}` those of that file" for name in _file_names(protocol))


def _untimed(protocol: Mapping[str, Any]) -> str:
    return " (finding is not, where boxes come from a file)" if _file_names(protocol) else ""


def _box_quality(protocol: Mapping[str, Any]) -> str:
    """A sentence for each kind of detected boxes: their AP50 and recall."""
    return "".join(
        f" Boxes of `{name}`: AP50 {facts['AP50']:.3f}, recall {facts['recall50']:.3f} at IoU .5."
        for name, facts in protocol.get("box_accuracy", {}).items()
        if "AP50" in facts
    )


def _costs(models: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on each model's size and work, once."""
    known = {m["model"]: m for m in models if "macs" in m and "params" in m}
    return (
        "; ".join(
            f"{name}: {m['params'] / 1e6:.1f} M parameters, {m['macs'] / 1e9:.2f} GMACs a person"
            for name, m in known.items()
        )
        + "."
    )


def fill(document: str, block: str, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """The document with `block` between its marks. Raises InputError without the marks."""
    before, begin, rest = document.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise InputError(f"a document needs the marks {marks[0]} and {marks[1]}")
    return f"{before}{begin}\n{block}\n{end}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the documents named after the report."""
    report, *documents = map(Path, sys.argv[1:] if argv is None else argv)
    block, marks = _block(report)
    for path in documents:
        write_file(path, fill(path.read_text(encoding="utf-8"), block, marks))
    return 0


def _block(report: Path) -> tuple[str, tuple[str, str]]:
    """The Markdown of a report, and the marks that it stands between."""
    if "*" in report.name:
        return gpu_block([_read(path) for path in sorted(report.parent.glob(report.name))]), GPU
    runs = sorted(report.glob("runtimes-*.json")) if report.is_dir() else [report]
    if not runs:
        return files_block(report), FILES
    record, *others = map(_read, runs)
    if "tasks" in record:
        return runtimes_block([record, *others]), RUNTIMES
    if "peak_rss_mib_3840x2160" in record:
        return frame_block(record), FRAME
    if "builds" in record:
        return builds_block(record), BUILDS
    return results_block(record), (BEGIN, END)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _row(model: Mapping[str, Any]) -> list[str]:
    accuracy = model["accuracy"]
    low, high = accuracy["AP_ci95"]
    figures = [f"{accuracy[name]:.3f}" for name in ("AP50", "AP75", "AR")]
    return [
        model["model"],
        model["boxes"],
        f"**{accuracy['AP']:.3f}**",
        f"{low:.3f} to {high:.3f}",
        *figures,
        f"{model['latency_ms']['total']['p50']:.0f}",
        f"{model['bytes'] / 1e6:.1f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
