"""How good a set of images is: one judge for every family."""
