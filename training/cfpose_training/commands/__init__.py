"""The sub-commands of cfpose-train: their arguments, and what runs them."""
