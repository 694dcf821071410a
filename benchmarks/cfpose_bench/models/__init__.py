"""Models under test: opened by name, and run each in a process of its own."""
