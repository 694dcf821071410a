"""Graphs in fp16, bf16 and int8, and the gate that writes only those that pass its limits."""
