"""Adapters that put other projects' models behind the harness: same photos, boxes and figures."""
