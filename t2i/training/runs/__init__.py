"""Run folders: checkpoints, logs, environment, trackers."""
