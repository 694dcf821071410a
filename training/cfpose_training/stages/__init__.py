"""The stages of training; each computes named losses from a batch."""
