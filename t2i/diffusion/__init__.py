"""Diffusion as mathematics: schedules, noising, what the network learns. Torch and the standard library alone."""
