"""What works on this machine, and what the bundled models must answer."""
