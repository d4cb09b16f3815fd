#!/usr/bin/env python
"""Measure speed and memory on this machine; the same as ``castvision benchmark``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without an installation

from castvision.benchmark.main import main

if __name__ == "__main__":
    sys.exit(main())
