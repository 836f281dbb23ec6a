"""Diagnostics: checks of the installation, and descriptions of images, runs and models as data."""
