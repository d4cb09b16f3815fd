#!/usr/bin/env python
"""Write a Pathfinder data set; the same as ``castvision make-pathfinder``."""

import sys

from castvision.data.make_pathfinder import main

if __name__ == "__main__":
    sys.exit(main())
