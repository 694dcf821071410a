"""One training run: the loop, the optimiser, the state to resume from, the log and checkpoints."""
