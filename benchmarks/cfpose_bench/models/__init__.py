"""Models to measure: opened by name, wrapped, and run in processes of their own."""
