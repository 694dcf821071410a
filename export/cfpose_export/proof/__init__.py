"""Proofs: how far a graph differs from the model that it was made from, and how far it may."""
