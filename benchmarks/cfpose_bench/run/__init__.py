"""A run of the bench: models over photos in turns, and what comes of it."""
