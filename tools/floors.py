#!/usr/bin/env python
"""Print the lowest releases that setup.cfg allows, as constraints for pip; what a test run with them needs is below.

    python -m venv .venv-floors && source .venv-floors/bin/activate
    python tools/floors.py > floors.txt && pip install --constraint floors.txt --editable '.[dev]'
    bash tools/test.sh

Requirements without a floor (torchvision, which comes in step with torch) are left to pip.
"""

from __future__ import annotations

import argparse
import re
import sys

from missing_requirements import read_requirements

_FLOOR = re.compile(r"^(?P<name>[\w.-]+)(\[[\w,]+\])?>=(?P<release>[\w.]+)")


def floors(extra: str | None) -> list[str]:
    """Lines such as ``torch==2.11``, of install_requires and of one extra."""
    found = (_FLOOR.match(line) for line in read_requirements(extra))
    return sorted({f"{each['name']}=={each['release']}" for each in found if each is not None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra", default="dev", help="whose requirements, too (default: dev)")
    sys.stdout.write("\n".join(floors(parser.parse_args().extra)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
