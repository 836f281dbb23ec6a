"""The one door for pixels: safe decoding, grids, atomic saving."""
