"""``python -m castvision VERB …``."""

import sys

from castvision_cli import main

sys.exit(main())
