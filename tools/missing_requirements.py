#!/usr/bin/env python
"""Print the requirements of setup.cfg that the running Python does not meet, one a line (nothing: all is there)."""

from __future__ import annotations

import argparse
import configparser
import importlib.metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def read_requirements(extra: str | None) -> list[str]:
    """The lines of install_requires and of one extra, from the checkout rather than from installed metadata."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    blocks = [config["options"]["install_requires"]]
    if extra:
        extras = config["options.extras_require"]
        if extra not in extras:
            raise SystemExit(f"expected one of the extras {sorted(extras)}, got {extra=}")
        blocks.append(extras[extra])
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def is_met(requirement: str) -> bool:
    """Whether the distribution is installed in a version that the requirement admits."""
    from pip._vendor.packaging.requirements import Requirement

    parsed = Requirement(requirement)
    try:
        version = importlib.metadata.version(parsed.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return parsed.specifier.contains(version, prereleases=True)


def is_this_checkout() -> bool:
    """Whether the installed castvision is this checkout in editable form, at this version."""
    try:
        installed = importlib.metadata.distribution("castvision")
    except importlib.metadata.PackageNotFoundError:
        return False
    origin = installed.read_text("direct_url.json") or ""
    literal = (ROOT / "castvision" / "__init__.py").read_text(encoding="utf-8")
    return ROOT.as_uri() in origin and f'__version__ = "{installed.version}"' in literal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", help="also check the requirements of this extra of setup.cfg")
    arguments = parser.parse_args()
    missing = [line for line in read_requirements(arguments.extra) if not is_met(line)]
    if not is_this_checkout():
        missing.append("castvision")
    print("\n".join(missing), end="")


if __name__ == "__main__":
    main()
