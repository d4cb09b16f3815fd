"""When the Triton kernels run, and the doors to them; Triton itself is imported at the first CUDA call.

They take over on CUDA devices of capability 8.0 or more, for what the kernels know: joint mixing over a partition,
softmax, no dropout, fp32, bf16 or fp16, heads up to 128 wide; and, of routing, the matching of SA Top-K. All else stays
on plain PyTorch, with the reason logged once. ``CASTVISION_TRITON=0`` in the environment turns the kernels off; it is
read once a process, since a forward's backward must take the same path.
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
LEAST_CAPABILITY = (8, 0)
MOST_HEAD_DIM = 128
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def attends(problem: Problem) -> bool:
    """Whether the kernels compute this problem, forward and backward."""
    return problem.q.device.type == "cuda" and _agrees("attention", _unsupported(problem), problem.q.device)


def routes(q: Tensor) -> bool:
    """Whether the kernels match tokens and clusters of this q, (B, H, N, D)."""
    return q.device.type == "cuda" and _agrees("routing", _unfit_rows(q), q.device)


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, D) and the log-sum-exp (B, N, H) that :func:`backward` wants."""
    from castvision.ops import _triton_attend

    with torch.cuda.device_of(problem.q):
        return _triton_attend.forward(problem)


def backward(problem: Problem, grad: Tensor, out: Tensor, lse: Tensor) -> dict[str, Tensor | None]:
    """Gradients by operand name, as :func:`castvision.ops._fused.backward` gives them."""
    from castvision.ops import _triton_backward

    with torch.cuda.device_of(problem.q):
        return _triton_backward.backward(problem, grad, out, lse)


def partition(  # noqa: PLR0913 - the operands of routing
    q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor, token_mask: Tensor | None, cluster_size: int
) -> Tensor:
    """SA Top-K by the affinity of softmax. q, k (B, H, N, D), surrogates (H, M, D), phi (B, N, 1).

    As many images at once as the workspace of scores holds, at least one.

    Returns:
        index (B, M, K) int64, members ascending, padding = N.
    """
    from castvision.ops._affinity import WORKSPACE
    from castvision.ops._triton_affinity import affinity
    from castvision.ops._triton_matching import match

    step = max(1, WORKSPACE // (q.shape[2] * surrogates.shape[1]))
    rows_q, rows_k = q.transpose(1, 2), k.transpose(1, 2)
    parts = []
    with torch.cuda.device_of(q):
        for start in range(0, q.shape[0], step):
            at = slice(start, start + step)
            mask = None if token_mask is None else token_mask[at]
            scores = affinity(rows_q[at], rows_k[at], surrogates, phi[at, :, 0], mask)
            parts.append(match(scores, cluster_size))
    return torch.cat(parts)


def _unsupported(problem: Problem) -> str | None:
    options = problem.options
    if not problem.joint or not problem.softmax or not options.is_partition:
        return "it computes joint mixing with softmax over a partition"
    return "it has no dropout" if options.dropout_p else _unfit_rows(problem.q)


def _unfit_rows(q: Tensor) -> str | None:
    if q.dtype not in DTYPES:
        return f"it takes fp32, bf16 and fp16, got {q.dtype}"
    return None if q.shape[-1] <= MOST_HEAD_DIM else f"it takes heads up to {MOST_HEAD_DIM} wide, got {q.shape[-1]}"


def _agrees(part: str, reason: str | None, device: torch.device) -> bool:
    index = torch.cuda.current_device() if device.index is None else device.index
    reason = _unavailable(index) or reason
    if reason is not None:
        _log_once(part, reason)
    return reason is None


@cache
def _unavailable(device_index: int) -> str | None:
    """Why no kernel can run on this device; None if they can."""
    if os.environ.get(SWITCH, "1") == "0":
        return f"{SWITCH}=0"
    if torch.version.hip is not None:
        return "it is tried on NVIDIA devices only"
    capability = torch.cuda.get_device_capability(device_index)
    if capability < LEAST_CAPABILITY:
        return f"it needs a device of capability {LEAST_CAPABILITY}, got {capability}"
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises: no compiler, no driver, ...
        return f"Triton does not work here ({type(error).__name__}: {error})"
    return None


@cache
def _log_once(part: str, reason: str) -> None:
    logger.info("CAST %s runs on plain PyTorch, not on Triton: %s", part, reason)
