"""Annotated photos: finding or downloading them, and reading their annotations."""

from cfpose_bench.data.annotations import read_annotations

__all__ = ["read_annotations"]
