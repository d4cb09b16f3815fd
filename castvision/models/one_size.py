"""Where a program made from a model holds for one image size: traces refuse others, compilers make another one."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from castvision.ops.arithmetic import is_exporting


def compile_each_size(x: Any) -> None:
    """Under ``torch.compile`` images (B, in_chans, height, width) of another size are another program.

    Compilers cannot resize positions, or count clusters, for a size that varies; the batch may.
    """
    if torch.compiler.is_compiling() and not is_exporting():
        for dim in (2, 3):
            torch._dynamo.mark_static(x, dim)


def of_one_size_in_a_trace(x: Any) -> Any:
    """Images (B, in_chans, height, width) as they are; a trace, which holds the size of its grid, refuses others.

    Export (``torch.export``) and scripts (``torch.jit.script``) take any size.
    """
    if not torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():  # type: ignore[no-untyped-call]
        return x
    height, width = constant_in_a_trace([x.shape[2], x.shape[3]])
    return x.expand(-1, -1, height, width)  # raises at any other size


def constant_in_a_trace(sizes: list[int]) -> list[int]:
    """Sizes as they are; under a trace, where they are tensors, as numbers."""
    if not torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():  # type: ignore[no-untyped-call]
        return sizes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # that they become constant is what is wanted
        return [int(size) for size in sizes]
