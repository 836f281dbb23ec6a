"""One visible training loop per family."""
