#!/usr/bin/env python
"""Figures of a trained model on images with known answers; the same as ``castvision evaluate``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without an installation

from castvision.inference.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
