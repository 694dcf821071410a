"""Adapters for other projects' models, so that they get the same photos and boxes as cfpose's."""
