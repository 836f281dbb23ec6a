"""Images as pixels: safe decoding, conversion to tensors, grids, atomic saving."""
