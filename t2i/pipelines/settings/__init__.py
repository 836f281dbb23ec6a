"""Settings of a drawing: defaults, inputs, limits, schedulers."""
