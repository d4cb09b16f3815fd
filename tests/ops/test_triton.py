"""The Triton back end without a GPU: kernels in Triton's interpreter, and when they are chosen."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from castvision.ops import _problem, _triton
from castvision.ops._problem import Options, Problem

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("triton")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["test_attention.py", "test_routing.py"])
def test_kernels_in_the_interpreter(name: str) -> None:
    """In a process of their own, since Triton reads TRITON_INTERPRET when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    path = ROOT / "tests" / "ops" / "interpreted" / name
    done = subprocess.run([*command, str(path)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def fresh() -> Iterator[None]:
    for function in (_triton._unavailable, _triton._log_once):
        function.cache_clear()
    yield
    for function in (_triton._unavailable, _triton._log_once):
        function.cache_clear()


def problem(options: Options, dtype: torch.dtype = torch.float32, head_dim: int = 4) -> Problem:
    q = torch.zeros(1, 1, 4, head_dim, dtype=dtype)
    index = torch.arange(4).view(1, 2, 2)
    phi = torch.zeros(1, 4, 1)
    return Problem(q, q, q, torch.zeros(1, 2, head_dim), phi, index, None, None, None, None, None, options)


DEFAULT = Options(0.5, "joint", "softmax", False, True, True, 0.0)


def test_what_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_problem, "arithmetic_dtype", lambda x: x.dtype)  # as on CUDA
    for mixing in ("joint", "surrogate"):
        assert _triton._unsupported(problem(replace(DEFAULT, mixing=mixing))) is None
    for options in (
        replace(DEFAULT, activation="laplace"),
        replace(DEFAULT, is_partition=False),
        replace(DEFAULT, dropout_p=0.1),
    ):
        assert _triton._unsupported(problem(options)) is not None
    assert "float64" in str(_triton._unsupported(problem(DEFAULT, torch.float64)))
    assert "128" in str(_triton._unsupported(problem(DEFAULT, torch.bfloat16, head_dim=160)))
    assert "64" in str(_triton._unsupported(problem(DEFAULT, head_dim=96)))


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("capability", "switch", "reason"),
    [((9, 0), "0", "CASTVISION_TRITON=0"), ((7, 5), "1", "(7, 5)"), ((8, 0), "1", "torch.float32")],
)
def test_refusal_is_logged_once(
    capability: tuple[int, int], switch: str, reason: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("CASTVISION_TRITON", switch)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with caplog.at_level(logging.INFO, "castvision.ops._triton"):
        for _ in range(3):
            assert not _triton._agrees("attention", torch.zeros(1), None)
    assert len(caplog.records) == 1
    assert reason in caplog.text


@pytest.mark.usefixtures("fresh")
def test_a_broken_installation_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here: a driver that cannot be had without a GPU, or without a compiler."""
    from triton.runtime import driver

    class Broken:
        def get_current_target(self) -> None:
            raise RuntimeError("no compiler")

    monkeypatch.delenv("CASTVISION_TRITON", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(driver, "_active", Broken())
    assert "no compiler" in str(_triton._unavailable(0, torch.bfloat16))


def test_cpu_never_imports_triton() -> None:
    source = (
        "import sys, torch; from castvision.ops import cast_attention;"
        "x = torch.randn(1, 1, 4, 4); cast_attention(x, x, x, torch.randn(1, 2, 4), torch.zeros(1, 4, 1));"
        "print('castvision.ops._triton_attend' in sys.modules, 'castvision.ops._triton_rows' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
