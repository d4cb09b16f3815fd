#!/usr/bin/env python
"""Predictions and cluster maps of your images, as pictures; the same as ``castvision demo``."""

import sys

from castvision.inference.demo import main

if __name__ == "__main__":
    sys.exit(main())
