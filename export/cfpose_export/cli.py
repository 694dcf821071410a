"""cfpose-export: a checkpoint becomes one proven ONNX graph, and the graph becomes an engine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cfpose_export import artifacts, checkpoint_commands, deploy_commands, engine_command
from cfpose_export.adopt import command as adopt_commands
from cfpose_export.precision import commands as precision_commands
from cfpose_export.precision import runtime_gate
from cfpose_export.triton import repository
from cfpose_sdk.errors import ExportError
from cfpose_sdk.files import check_command_outputs, check_output_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 when a proof failed; bad input raises."""
    arguments = _parser().parse_args(argv)
    check_command_outputs(vars(arguments), "output", "json")
    if getattr(arguments, "folder", None) is not None:
        check_output_folder("--folder", arguments.folder)
    try:
        arguments.run(arguments)
    except ExportError as error:
        print(f"cfpose-export: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cfpose-export",
        description="Write a checkpoint as one ONNX graph, and graphs as engines and OpenVINO "
        "models; prove that each is the same model.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (
        checkpoint_commands,
        adopt_commands,
        precision_commands,
        runtime_gate,
        engine_command,
        deploy_commands,
        artifacts,
        repository,
    ):
        module.add_commands(commands)
    return parser
