"""Long batches: claimed, drawn, recorded and packed by any number of processes."""
