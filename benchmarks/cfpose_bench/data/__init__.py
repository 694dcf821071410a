"""Annotated photos: their files, their annotations, and where they are fetched from."""

from cfpose_bench.data.annotations import read_annotations

__all__ = ["read_annotations"]
