"""Graphs of lower precision, and the gate that lets only proven ones out."""
