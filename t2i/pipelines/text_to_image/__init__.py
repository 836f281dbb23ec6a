"""Text-to-image with any diffusers pipeline."""
