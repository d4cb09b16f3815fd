"""The fused back end: exact CAST attention in O(N) memory, forward and backward, in plain PyTorch.

Nothing of size heads * N * M exists: work runs over chunks with a fixed workspace, and backward recomputes them.
Joint mixing over a partition packs everything a cluster sees into one attention call (:mod:`._packed`), as long as
copying M summaries beside K members is worth it; all else merges parts by log-sum-exp (:mod:`._merged`). On CUDA,
kernels of our own take what they can (:mod:`._triton`).
"""

from __future__ import annotations

from torch import Tensor

from castvision.ops import _merged, _packed, _triton
from castvision.ops._problem import Problem

_MOST_SUMMARIES_PER_MEMBER = 4


def forward(problem: Problem, seed: int) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, D) and, for the backward, log-sum-exp (B, N, H)."""
    if _triton.attends(problem):
        return _triton.forward(problem)
    return _packed.forward(problem, seed) if _fits_pack(problem) else _merged.forward(problem, seed)


def backward(problem: Problem, grad: Tensor, out: Tensor, lse: Tensor, seed: int) -> dict[str, Tensor | None]:
    """Gradients by operand name, tokens in rows (B, N, H, D); an operand that was None has None."""
    if _triton.attends(problem):
        return _triton.backward(problem, grad, out, lse)
    if _fits_pack(problem):
        return _packed.backward(problem, grad, out, lse, seed)
    return _merged.backward(problem, grad, out, lse, seed)


def _fits_pack(problem: Problem) -> bool:
    summaries = problem.num_clusters if problem.options.summaries else 0
    few = summaries <= _MOST_SUMMARIES_PER_MEMBER * problem.cluster_size
    return problem.joint and problem.options.is_partition and few
