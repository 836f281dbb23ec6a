"""Reports on training runs and comparisons: read run folders, plot their curves, write one page.

Independent of training.
"""
