"""`cfpose-bench runtimes`: the times of pose runtimes on one photo, compared as ratios."""
