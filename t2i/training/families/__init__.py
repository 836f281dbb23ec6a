"""The training loop of each family."""
