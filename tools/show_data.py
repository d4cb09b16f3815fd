"""Draw a contact sheet of a configuration's data: the same as ``castvision data show``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without an installation

from castvision.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", "show", *sys.argv[1:]]))
