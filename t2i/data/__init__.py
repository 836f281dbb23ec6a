"""From files to batches: tables of images, their order, and their captions."""
