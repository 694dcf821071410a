"""The stages of training: each turns a batch into named losses."""
