"""Where weights come from: their names, finding and checking them."""
