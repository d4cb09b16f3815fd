"""Warnings of the clients' own making, ignored one by one; all others stay errors, as in the rest of the suite."""

from __future__ import annotations

import pytest

IGNORED = {
    # Lightning asks torch's pytree in a way that torch 2.14 is about to drop
    "test_torchgeo.py": ("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning",),
    # anomalib calls its own function with an argument it deprecates
    "test_anomalib.py": ("ignore:Argument embeddings is deprecated since v2.1.0:DeprecationWarning",),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "clients":
            for line in IGNORED.get(item.path.name, ()):
                item.add_marker(pytest.mark.filterwarnings(line))
