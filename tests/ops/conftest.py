from __future__ import annotations

import os

import pytest


@pytest.fixture
def small_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a single cluster and of a few tokens, so that every loop takes several turns."""
    from castvision.ops import _affinity, _problem

    monkeypatch.setattr(_problem, "WORKSPACE", 64)
    monkeypatch.setattr(_affinity, "WORKSPACE", 64)


# Triton decides when it is imported whether kernels are interpreted: test_triton.py runs that folder in its own process
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
