"""One training run: the loop, its optimiser, its resumable state, and what it leaves behind."""
