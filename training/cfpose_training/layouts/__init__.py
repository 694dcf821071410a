"""Annotations as other tools lay them out, read and mended into COCO files."""
