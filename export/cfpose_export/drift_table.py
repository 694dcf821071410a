"""The committed drift figures → the table in the documents.

`python -m cfpose_export.drift_table export/results/drift.json export/README.md`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cfpose_bench.tables import fill
from cfpose_sdk.files import write_file

HEAD = ("model", "precision", "computed by", "mean px", "p99 px", "max px", "mean OKS", "min OKS",
        "confidence p99", "logit max", "gate")  # fmt: skip


def drift_block(record: Mapping[str, Any]) -> str:
    """Markdown: one row a model, precision and way of computing it; then AP where it was measured.

    Pixels are crop pixels over the joints whose float32 confidence reaches the bound.
    """
    rows = [_row(m, row) for m in record["models"] for row in m["rows"] if "figures" in row]
    lines = _table(HEAD, 3, rows)
    ap = [line for m in record["models"] for row in m["rows"] for line in _ap_rows(m, row)]
    if ap:
        lines += ["", *_table(("model", "precision", "computed by", "photos", "AP", "ΔAP"), 3, ap)]
    for model in record["models"]:
        packages = model["environment"]["packages"]
        compared = next((r["figures"] for r in model["rows"] if "figures" in r), None)
        many = f"{compared['crops']} crops, {compared['joints']} joints of " if compared else ""
        lines += [
            "",
            f"{model['model']} ({model['size_wh'][1]} x {model['size_wh'][0]}): {many}confidence "
            f"≥ {model['min_confidence']:g}; onnxruntime {packages['onnxruntime']}; "
            f"`{model['command']}`.",
        ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the documents named after the figures."""
    figures, *documents = map(Path, sys.argv[1:] if argv is None else argv)
    block = drift_block(json.loads(figures.read_text(encoding="utf-8")))
    for path in documents:
        write_file(path, fill(path.read_text(encoding="utf-8"), block))
    return 0


def _table(head: Sequence[str], words: int, rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "|---" * words + "|---:" * (len(head) - words) + "|"
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def _row(model: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    f = row["figures"]
    keys = ("mean_px", "p99_px", "max_px", "oks_mean", "oks_min", "confidence_p99", "logit_max")
    digits = (3, 2, 1, 4, 3, 4, 2)
    cells = ["-" if f[k] is None else f"{f[k]:.{d}f}" for k, d in zip(keys, digits, strict=True)]
    verdict = "passes" if row["passes"] else "refused"
    return [model["model"], row["precision"], _how(row), *cells, verdict]


def _ap_rows(model: Mapping[str, Any], row: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            model["model"],
            row["precision"],
            _how(row),
            f"{entry['images']} of `{entry['dataset']}`",
            f"{entry['AP']:.4f}",
            "" if row["precision"] == "fp32" else f"{entry['delta']:+.4f}",
        ]
        for entry in row["ap"]
    ]


def _how(row: Mapping[str, Any]) -> str:
    return str(row.get("how", "the file, onnxruntime CPU"))


if __name__ == "__main__":
    sys.exit(main())
