"""`cfpose doctor`: checks of this machine and of the bundled models."""
