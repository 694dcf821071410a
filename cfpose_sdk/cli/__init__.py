"""The command `cfpose`."""

from cfpose_sdk.cli.main import main

__all__ = ["main"]
