"""Nyström attention: full attention's matrix from its columns and rows at a few landmarks.

Xiong, Zeng, Chakraborty, Tan, Fung, Li and Singh, "Nyströmformer: A Nyström-Based Algorithm for Approximating
Self-Attention", arXiv 2102.03902.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from castvision.ops.arithmetic import wide_dtype
from castvision.peers.core import Core, with_prefix

if TYPE_CHECKING:
    from torch import Tensor

    from castvision.ops.options import Operands


class Nystrom(Core):
    """Three softmaxes around landmarks.

    Landmarks are means of queries and of keys over m runs of tokens that follow one another (the paper's segment
    means; runs differ by one token at most). With q̃, k̃ the landmarks and A⁺ the pseudo-inverse of the middle matrix,

        F = softmax(scale q k̃ᵀ),  A = softmax(scale q̃ k̃ᵀ),  B = softmax(scale q̃ kᵀ),  Y = F A⁺ (B v)

    The pseudo-inverse is the paper's iteration, from Z = Aᵀ / (|A|₁ |A|_∞) of each matrix:

        Z ← Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4

    Prefix keys and values stand in B. The paper's convolution of the values beside it is ``local_branch``.

    Args:
        num_heads: H.
        head_dim: D.
        seed: Not used.
        num_landmarks: m, at most N are used.
        iterations: Of the pseudo-inverse.
    """

    no_mask = "its landmarks are means of equal runs of tokens, which masked ones would tear"

    def __init__(
        self, num_heads: int, head_dim: int, seed: int = 0, *, num_landmarks: int = 64, iterations: int = 6
    ) -> None:
        super().__init__(num_heads, head_dim, seed)
        self.num_landmarks, self.iterations = num_landmarks, iterations

    def attend(self, x: Operands, grid: tuple[int, int], dropout_p: float) -> Tensor:
        """See :meth:`Core.attend`."""
        q, k, v = (each.transpose(1, 2) for each in (x.q, x.k, x.v))  # B, H, N, D
        number = q.shape[2]
        m = min(self.num_landmarks, number)
        run = torch.arange(number, device=q.device) * m // number
        member = (run == torch.arange(m, device=q.device)[:, None]).to(q.dtype)  # m, N
        means = member / member.sum(1, keepdim=True)
        mark_q, mark_k = means @ q, means @ k  # B, H, m, D
        left = F.dropout((q * x.scale @ mark_k.transpose(-1, -2)).softmax(-1), dropout_p)
        wide = wide_dtype(q.dtype)
        middle = pseudo_inverse(
            (mark_q.to(wide) * x.scale @ mark_k.to(wide).transpose(-1, -2)).softmax(-1), self.iterations
        )
        right = F.scaled_dot_product_attention(
            mark_q, with_prefix(k, x.prefix_k), with_prefix(v, x.prefix_v), scale=x.scale
        )
        return (left @ (middle @ right.to(wide)).to(v.dtype)).transpose(1, 2)


def pseudo_inverse(a: Tensor, iterations: int) -> Tensor:
    """The Moore–Penrose inverse of square matrices (…, m, m) by iteration."""
    absolute = a.detach().abs()
    norms = absolute.sum(-2).amax(-1) * absolute.sum(-1).amax(-1)
    z = a.transpose(-1, -2) / norms[..., None, None]
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az))) / 4
    return z
