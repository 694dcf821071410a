"""`cfpose tune`: its options and help, and the table that it prints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cfpose_sdk.backends.bundled import BUNDLED_MODEL, model_file
from cfpose_sdk.cli.serve import model_given
from cfpose_sdk.tuning.run import ROUNDS, Outcome, Row, TuneOptions, tune

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_MANNERS = (
    "Each setting is a process of its own; they take turns. A lower precision is tried only where "
    "it passes its gate. The fastest is kept for --precision tuned in $CFPOSE_CACHE, else "
    "~/.cache/cfpose; where nothing surely beats onnxruntime in float32, that is kept. It takes "
    "some minutes; the machine should have nothing else to do. exit codes: 0: tuned; 2: wrong use "
    "or bad input; 130: interrupted, and nothing is left"
)
_HEAD = ("setting", "ms", "ratio", "px p99", "OKS", "confidence p99", "MB", "")


def add_tune(commands: Commands) -> None:
    """Add `tune` to the commands of `cfpose`."""
    command = commands.add_parser(
        "tune",
        help="find and keep the fastest way to run the models on this machine",
        description="Time every runtime, precision and number of threads that works here.",
        epilog=_MANNERS,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=_tune)
    command.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="photos of people; None: the bundled ones"
    )
    command.add_argument(
        "--model",
        metavar="M",
        help="exported pose model, a bundled one's name, or PRESET:FILE; None: the bundled default",
    )
    command.add_argument(
        "--people",
        metavar="N",
        type=int,
        help="of each photo, by repeating or leaving out those that are found; None: as many as "
        "are found",
    )
    command.add_argument(
        "--rounds", metavar="N", type=int, default=ROUNDS, help="turns of the fastest settings"
    )


def _tune(options: argparse.Namespace) -> int:
    given = model_given(options.model)
    chosen = TuneOptions(
        model=BUNDLED_MODEL if given is None else Path(model_file(given)),
        sources=tuple(options.sources),
        people=options.people,
        rounds=options.rounds,
    )
    outcome = tune(chosen, _say)
    print(describe(outcome))
    return 0


def _say(step: str) -> None:
    print(f"cfpose tune: {step}", file=sys.stderr, flush=True)


def describe(outcome: Outcome) -> str:
    """The table, what was left out, and what is kept."""
    rows = [_cells(row, outcome) for row in _ordered(outcome.rows)]
    widths = [max(len(line[n]) for line in (_HEAD, *rows)) for n in range(len(_HEAD))]
    lines = [_line(cells, widths) for cells in (_HEAD, *rows)]
    lines += ["", *(f"not tried: {what}: {why}" for what, why in outcome.left_out.items())]
    default = outcome.rows[0]
    if outcome.tuned is default:
        lines.append("Nothing surely beats the default here: tuned is onnxruntime in float32.")
    elif outcome.tuned.ratio is not None:
        middle, low, high = outcome.tuned.ratio
        lines.append(
            f"tuned is {outcome.tuned.setting.name}: {middle:.2f} times the default's speed "
            f"(half of the rounds from {low:.2f} to {high:.2f})."
        )
    lines.append(
        f"{outcome.photos} photos with {sum(outcome.people)} people; kept in {outcome.file}. Use "
        f"it with: --precision tuned"
    )
    return "\n".join(lines)


def _ordered(rows: tuple[Row, ...]) -> list[Row]:
    """The default, then the others by their time, then what is refused."""

    def key(row: Row) -> tuple[int, float]:
        return (1 if row.ratio else 2 if row.ms is not None else 3, row.ms or 0.0)

    return [rows[0], *sorted(rows[1:], key=key)]


def _cells(row: Row, outcome: Outcome) -> tuple[str, ...]:
    drift: dict[str, Any] = dict(row.drift)
    kept = row is outcome.tuned
    verdict = row.problem or ("kept" if kept else "" if row.ratio else "slower at first sight")
    default_ms = outcome.rows[0].ms
    ratio = "" if row.ms is None or default_ms is None else f"{default_ms / row.ms:.2f}"
    if row.ratio is not None:
        ratio = f"{row.ratio[0]:.2f}"
    if row is outcome.rows[0]:
        verdict = f"the default{', kept' if kept else ''}"
    return (
        row.setting.name,
        "-" if row.ms is None else f"{row.ms:.1f}",
        ratio or "-",
        _figure(drift.get("p99_px"), 2),
        _figure(drift.get("oks_mean"), 4),
        _figure(drift.get("confidence_p99"), 4),
        "-" if row.memory_mb is None else f"{row.memory_mb:.0f}",
        verdict,
    )


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    first, *middle, last = cells
    numbers = [cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True)]
    return "  ".join([first.ljust(widths[0]), *numbers, last]).rstrip()
