"""The mathematics of diffusion: schedules, objectives, guidance, samplers. Torch and the standard library alone."""
