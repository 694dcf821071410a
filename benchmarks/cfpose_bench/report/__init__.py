"""The report of a run as JSON, tables and an HTML page; its bounds; the cost of a graph."""
