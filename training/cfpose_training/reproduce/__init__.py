"""The paper's tables by one command: its targets, a plan of steps, and our figures beside them."""
