"""The networks: torch, with diffusers' way of saving and loading. None of them depends on a diffusion process."""
