"""The proofs: how far an exported graph may be from the model that it was made from."""
