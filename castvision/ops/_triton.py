"""When the Triton kernels run, and the doors to them; Triton itself is imported at the first CUDA call.

They take over on CUDA devices of capability 8.0 or more, for what the kernels know: either mixing over a partition,
softmax, no dropout, bf16 or fp16 with heads up to 128 wide, fp32 with heads up to 64 from capability 9.0 on (older
devices have too few registers for it); and, of routing, SA Top-K by affinity. All else stays on plain PyTorch, with the
reason logged once. ``CASTVISION_TRITON=0`` in the environment turns the kernels off. The choice follows from the
operands and the device alone, and the environment is read once a process: a backward takes its forward's path.
"""

from __future__ import annotations

import logging
import os
from functools import cache

import torch
from torch import Tensor

from castvision.ops._problem import Problem

logger = logging.getLogger(__name__)

SWITCH = "CASTVISION_TRITON"
MOST_HEAD_DIM = {torch.bfloat16: 128, torch.float16: 128, torch.float32: 64}


def attends(problem: Problem) -> bool:
    """Whether the kernels compute this problem, forward and backward."""
    return problem.q.is_cuda and _agrees("attention", problem.q, _unsupported(problem))


def routes(q: Tensor) -> bool:
    """Whether the kernels match tokens and clusters of this q, (B, H, N, D)."""
    return q.is_cuda and _agrees("routing", q, _unfit_rows(q))


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, D) and the log-sum-exp (B, N, H) that :func:`backward` wants."""
    from castvision.ops import _triton_attend

    with torch.cuda.device_of(problem.q):  # type: ignore[no-untyped-call]
        return _triton_attend.forward(problem)


def backward(problem: Problem, grad: Tensor, out: Tensor, lse: Tensor) -> dict[str, Tensor | None]:
    """Gradients by operand name, as :func:`castvision.ops._fused.backward` gives them."""
    from castvision.ops import _triton_backward, _triton_surrogate

    with torch.cuda.device_of(problem.q):  # type: ignore[no-untyped-call]
        if problem.joint or not problem.options.summaries:  # a token that sees its own cluster alone weighs nothing
            return _triton_backward.backward(problem, grad, out, lse)
        return _triton_surrogate.backward(problem, grad, out, lse)


def partition(
    q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor, token_mask: Tensor | None, cluster_size: int
) -> Tensor:
    """SA Top-K by the affinity of softmax. q, k (B, H, N, D), surrogates (H, M, D), phi (B, N, 1).

    As many images at once as the workspace of scores holds; where it does not hold those of one, scores are not kept.

    Returns:
        index (B, M, K) int64, members ascending, padding = N.
    """
    from castvision.ops._affinity import WORKSPACE
    from castvision.ops._triton_affinity import affinity, recipe
    from castvision.ops._triton_matching import match

    step = WORKSPACE // (q.shape[2] * surrogates.shape[1])
    rows_q, rows_k, phi = q.transpose(1, 2), k.transpose(1, 2), phi[..., 0]
    parts = []
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        if not step:
            return match(recipe(rows_q, rows_k, surrogates, phi, token_mask), cluster_size)
        for start in range(0, q.shape[0], step):
            at = slice(start, start + step)
            mask = None if token_mask is None else token_mask[at]
            parts.append(match(affinity(rows_q[at], rows_k[at], surrogates, phi[at], mask), cluster_size))
    return torch.cat(parts)


def _unsupported(problem: Problem) -> str | None:
    options = problem.options
    if not problem.softmax or not options.is_partition:
        return "it computes softmax over a partition"
    return "it has no dropout" if options.dropout_p else _unfit_rows(problem.q)


def _unfit_rows(q: Tensor) -> str | None:
    most = MOST_HEAD_DIM.get(q.dtype)
    if most is None:
        return f"it takes fp32, bf16 and fp16, got {q.dtype}"
    return None if q.shape[-1] <= most else f"it takes heads up to {most} wide in {q.dtype}, got {q.shape[-1]}"


def _agrees(part: str, q: Tensor, reason: str | None) -> bool:
    index = torch.cuda.current_device() if q.device.index is None else q.device.index
    reason = _unavailable(index, q.dtype) or reason
    if reason is not None:
        _log_once(part, reason)
    return reason is None


@cache
def _unavailable(device_index: int, dtype: torch.dtype) -> str | None:
    """Why no kernel can run on this device in this dtype; None if they can."""
    if os.environ.get(SWITCH, "1") == "0":
        return f"{SWITCH}=0"
    if torch.version.hip is not None:
        return "it is tried on NVIDIA devices only"
    capability = torch.cuda.get_device_capability(device_index)
    least = (9, 0) if dtype == torch.float32 else (8, 0)
    if capability < least:
        return f"it needs a device of capability {least} for {dtype}, got {capability}"
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # whatever a broken installation raises: no compiler, no driver, ...
        return f"Triton does not work here ({type(error).__name__}: {error})"
    return None


@cache
def _log_once(part: str, reason: str) -> None:
    logger.info("CAST %s runs on plain PyTorch, not on Triton: %s", part, reason)
