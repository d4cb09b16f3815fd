#!/usr/bin/env python
"""Build the pages as a site, in `site/` unless told otherwise; any broken link or reference ends it with an error.

The pages are Markdown that reads well on a forge, with links from file to file. The site keeps those links: its
source is a copy of the README, docs/ and the pictures they show, each at the place it has in the repository.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN = (
    "*.md",
    "CITATION.cff",
    "docs/**/*.md",
    "docs/**/*.png",
    "demo/*.png",
    "demo/*.jpg",
    "demo/*.ipynb",
    "benchmarks/results/**/*.png",
    "results/README.md",
    "results/figures/*.png",
)


def gather(folder: Path) -> None:
    """Copy what the site shows, folders and all."""
    for pattern in SHOWN:
        for path in ROOT.glob(pattern):
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "site", help="(default: site)")
    arguments = parser.parse_args()
    try:
        from mkdocs.commands.build import build
        from mkdocs.config import load_config
        from mkdocs.exceptions import Abort, ConfigurationError
    except ImportError:
        print("docs_site.py: the site needs mkdocs: pip install 'castvision[docs]'", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    logging.basicConfig(level=logging.WARNING, format="docs_site.py: %(message)s")  # mkdocs says there what is broken
    with tempfile.TemporaryDirectory() as folder:
        gather(Path(folder))
        try:
            config = load_config(
                str(ROOT / "mkdocs.yml"), docs_dir=folder, site_dir=str(arguments.output.absolute()), strict=True
            )
            config.plugins.on_startup(command="build", dirty=False)
            build(config)
        except (Abort, ConfigurationError) as error:
            print(f"docs_site.py: {error}", file=sys.stderr)
            return 1
    print(f"{arguments.output}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
