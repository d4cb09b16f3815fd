"""``python -m castvision VERB …``."""

import sys

from castvision.cli import main

sys.exit(main())
