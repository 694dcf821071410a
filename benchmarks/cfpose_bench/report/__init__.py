"""The report of a run: JSON, tables, bounds, HTML page, and what a graph costs."""
