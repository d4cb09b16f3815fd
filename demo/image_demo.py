#!/usr/bin/env python
"""Predictions and cluster maps of your images, as pictures; the same as ``castvision demo``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without an installation

from castvision_cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
