"""The console commands; here errors become messages and exit codes.

0 success, 1 a check failed, 2 wrong use or bad input, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys

from cfpose_sdk.errors import CfposeError


def cfpose() -> int:
    """`cfpose predict|doctor`."""
    return _run("cfpose", "cfpose_sdk.cli")


def train() -> int:
    """`cfpose-train`, of the extra train."""
    return _run("cfpose-train", "cfpose_training.cli")


def export() -> int:
    """`cfpose-export`, of the extra export."""
    return _run("cfpose-export", "cfpose_export.cli")


def bench() -> int:
    """`cfpose-bench`, of the extra bench."""
    return _run("cfpose-bench", "cfpose_bench.cli")


def _run(command: str, module: str) -> int:
    try:
        code = int(importlib.import_module(module).main(sys.argv[1:]))
        sys.stdout.flush()
    except CfposeError as error:
        print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader (head, less) has gone; without this Python complains once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code
