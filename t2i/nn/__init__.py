"""The networks: torch, and diffusers' way of saving and loading. They know nothing of diffusion."""
