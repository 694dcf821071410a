"""The paper's Table IV: schemes, runs and their table."""
