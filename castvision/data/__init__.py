"""Data: the Pathfinder generator, readers of LRA's sets, images of any kind. Nothing here needs Lightning."""
