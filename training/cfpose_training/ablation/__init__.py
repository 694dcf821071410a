"""The paper's Table IV: its schemes, their runs, and the table of results."""
