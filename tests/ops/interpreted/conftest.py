"""Triton's kernels on a CPU, in its interpreter: run by ``TRITON_INTERPRET=1 pytest tests/ops/interpreted``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from castvision.ops import _problem, _triton

Kernels = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Inside ``with kernels():`` the kernels take what they support, on a CPU; what they leave unwritten is NaN."""
    monkeypatch.setattr(interpreter.interpreter_builder, "create_dot", _dot)

    @contextmanager
    def chosen() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(_triton, "attends", lambda problem: _triton._unsupported(problem) is None)
            patch.setattr(_problem, "arithmetic_dtype", lambda x: x.dtype)  # as on CUDA, not fp32 for half precision
            patch.setattr(_triton, "routes", lambda q: _triton._unfit_rows(q) is None)
            torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN, integers with their largest
            yield
            torch.use_deterministic_algorithms(False)

    return chosen


def _dot(a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """Products of bf16 too, which the interpreter keeps as bit patterns and would multiply as integers.

    In float64, rounded once: numpy's fp32 product of a row depends on where in the matrix it stands, a GPU's does not.
    """
    product = np.matmul(_numbers(a), _numbers(b), dtype=np.float64)
    return interpreter.TensorHandle((product + d.data).astype(d.data.dtype), d.dtype.scalar)


def _numbers(x: Any) -> np.ndarray:
    return (x.data.astype(np.uint32) << 16).view(np.float32) if x.dtype.scalar == tl.bfloat16 else x.data
