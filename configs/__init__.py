"""The shipped configurations; in an installed package this folder is ``castvision.configs``."""
