"""The pipelines of this toolkit's own unconditional and class-conditional models."""
