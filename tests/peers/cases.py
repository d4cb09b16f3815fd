"""Small operands for peers, and what a peer is held to: a definition written with loops, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from castvision.peers.core import Core, attend

SCALE = 0.7


@dataclass
class Case:
    """Operands (B, P + N, H, D) of one call."""

    q: Tensor
    k: Tensor
    v: Tensor
    grid: tuple[int, int]
    prefix: int
    mask: Tensor | None

    def run(self, core: Core) -> Tensor:
        return attend(core, self.q, self.k, self.v, self.grid, self.prefix, self.mask, SCALE)

    def full(self) -> Tensor:
        """Full attention."""
        logits = torch.einsum("bnhd,bmhd->bhnm", self.q, self.k) * SCALE
        if self.mask is not None:
            seen = torch.nn.functional.pad(self.mask, (self.prefix, 0), value=True)
            logits = logits.masked_fill(~seen[:, None, None], -torch.inf)
        return torch.einsum("bhnm,bmhd->bnhd", logits.softmax(-1), self.v)


def make_case(
    grid: tuple[int, int] = (5, 7), *, prefix: int = 2, masked: bool = False, batch: int = 2, width: int = 4
) -> Case:
    generator = torch.Generator().manual_seed(3)
    shape = (batch, prefix + grid[0] * grid[1], 2, width)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3))
    mask = None
    if masked:
        mask = torch.rand(batch, grid[0] * grid[1], generator=generator) < 0.7
        mask[:, 0] = True
    return Case(q, k, v, grid, prefix, mask)


Rows = Callable[[Tensor, Tensor, Tensor, int, Tensor], Tensor]
"""q, k, v (P + N, D) of one image and head, P, and which of the N are real, to rows (N, D) of patches."""


def check_definition(core: Core, rows: Rows, case: Case) -> None:
    """The core's output and gradients are the definition's; prefix tokens attend to all."""
    weight = torch.randn(case.q.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = case.full()
    batch, _, heads, _ = case.q.shape
    real = torch.ones(batch, case.grid[0] * case.grid[1], dtype=torch.bool) if case.mask is None else case.mask
    images = []
    for b in range(batch):
        each = [
            rows(case.q[b, :, h], case.k[b, :, h], case.v[b, :, h], case.prefix, real[b]) * real[b, :, None]
            for h in range(heads)
        ]
        images.append(torch.stack(each, 1))
    expected = torch.cat([expected[:, : case.prefix], torch.stack(images)], 1)
    shown = torch.nn.functional.pad(real, (case.prefix, 0), value=True)[:, :, None, None]
    wanted = torch.autograd.grad((expected * weight * shown).sum(), (case.q, case.k, case.v))
    found = case.run(core)
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad((found * weight).sum(), (case.q, case.k, case.v), materialize_grads=True)
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def check_is_full(core: Core, case: Case, tolerance: float = 1e-9) -> None:
    """Nothing is left out: full attention, of real tokens."""
    shown = torch.ones_like(case.q, dtype=torch.bool)
    if case.mask is not None:
        shown = torch.nn.functional.pad(case.mask, (case.prefix, 0), value=True)[:, :, None, None].expand_as(case.q)
    torch.testing.assert_close(case.run(core)[shown], case.full()[shown], rtol=tolerance, atol=tolerance)


def over(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One query's row over some keys."""
    return (keys @ q * SCALE).softmax(0) @ values
