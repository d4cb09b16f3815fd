"""The pages as a site: built whole, without a warning, asking nobody else for anything."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_every_page_is_in_the_menu():
    pages = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.md", "docs/*.md", "results/*.md")
        for path in ROOT.glob(pattern)
    }
    assert set(re.findall(r": (\S+\.md)$", CONFIG, re.MULTILINE)) == pages


@pytest.mark.slow
def test_the_site_is_built(tmp_path):
    pytest.importorskip("material")
    script = [sys.executable, ROOT / "tools/docs_site.py", "--output", tmp_path / "site"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site/docs/api/index.html").read_text(encoding="utf-8")
    assert "anchors" in api and "castvision.ops.make_options" in api
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|img|link)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text(encoding="utf-8")
        )
        assert not fetched, (page, fetched)
