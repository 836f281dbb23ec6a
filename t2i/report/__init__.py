"""Reports on training runs: read run folders, draw their curves, write one page. Imports nothing of training."""
