"""Photos, videos, cameras: where images come from, and how they are written."""

from cfpose_sdk.media.image import read_image

__all__ = ["read_image"]
