"""Weights on disk: our own files, those of other projects, and exported graphs."""
