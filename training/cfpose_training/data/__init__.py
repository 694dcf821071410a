"""People and photos → augmented crops with their targets."""
