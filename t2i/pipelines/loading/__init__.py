"""Loading of models: memory, device, precision, offloading."""
