"""In which dtype, on which device and in which mode attention computes: decided here for all of it."""

import functools
import logging

import torch
from torch import Tensor

_HALF_IS_SLOW = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
"""Without AVX-512, matrix products of torch in bfloat16 and float16 run 10 times slower than in fp32."""


def is_eager() -> bool:
    """Whether Python runs operation by operation: no script, compilation, export or trace, nor ``torch.func``.

    Of which ``vmap`` writes into no tensor of ours, and ``grad`` knows neither our gradients nor checkpoints.
    """
    if not torch.jit.is_scripting():
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
            return False
        return not torch._C._are_functorch_transforms_active()
    return False


def is_exporting() -> bool:
    """Whether a program for images of any size is made: ``torch.export``, which traces without compiling Python."""
    # torch 2.11 says so of torch.compile too
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def on_cpu(x: Tensor) -> bool:
    """Whether fused attention takes masks of another dtype and gives its log-sum-exp, and sums have an order."""
    return x.device.type == "cpu"


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of softmaxes and sums: float64 for float64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def arithmetic_dtype(v: Tensor) -> torch.dtype:
    """The dtype to compute in: that of v, but fp32 for half precision on a CPU that has no arithmetic for it."""
    if v.device.type != "cpu" or (v.dtype != torch.bfloat16 and v.dtype != torch.float16):
        return v.dtype
    if not torch.jit.is_scripting():
        if not _HALF_IS_SLOW:
            return v.dtype
        if not torch.compiler.is_compiling():
            _warn_of_half()
    return torch.float32


@functools.cache
def _warn_of_half() -> None:
    logging.getLogger(__name__).warning("half precision is computed in fp32: this CPU has no fast arithmetic for it")
