"""Train, validate, test or predict by a configuration: the same as ``castvision train``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without an installation

from castvision_cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    sys.exit(main())
