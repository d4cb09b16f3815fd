#!/usr/bin/env python
"""Masks, tables and polygons of images of any size; the same as ``castvision predict``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without an installation

from castvision.inference.predict import main

if __name__ == "__main__":
    sys.exit(main())
