"""Reading photos, videos and cameras; drawing; writing pictures and videos."""

from cfpose_sdk.media.image import read_image

__all__ = ["read_image"]
