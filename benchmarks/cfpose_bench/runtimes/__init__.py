"""`cfpose-bench runtimes`: pose runtimes side by side, as ratios."""
