"""Public files that the paper's recipes need: where they come from, and fetching them."""
