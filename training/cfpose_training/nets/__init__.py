"""The networks of the method: pure modules, no I/O."""
