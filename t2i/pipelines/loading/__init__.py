"""Loading a model: memory, device, precision, offloading."""
