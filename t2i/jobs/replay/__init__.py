"""Replay of images from their records, and verification that they are identical."""
