"""Annotations and photos → batches of augmented crops with their targets."""
