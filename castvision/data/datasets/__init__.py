"""Data sets of files: what a torch `DataLoader` is given."""
