"""One run of the bench: models predict all photos in turns, and figures are computed."""
