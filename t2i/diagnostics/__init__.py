"""What this installation, an image, a run or a model is."""
