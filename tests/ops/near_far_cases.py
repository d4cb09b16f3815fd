"""Operands of near and far for tests, small and awkward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from castvision.ops import AttentionOptions, Routing, cast_attention, make_options


@dataclass
class Case:
    """Operands (B, P + N, H, D) of one call, and what goes with them."""

    operands: list[Tensor]
    options: AttentionOptions
    arguments: dict[str, Any] = field(default_factory=dict)

    def run(self, **more: Any) -> Tensor:
        return cast_attention(*self.operands, self.options, **{**self.arguments, **more})[0]

    def gradients(self, weight: Tensor, **more: Any) -> tuple[Tensor, list[Tensor]]:
        out = self.run(**more)
        grads = torch.autograd.grad(
            (out * weight).sum() + 0 * sum(x.sum() for x in self.operands), self.operands, materialize_grads=True
        )
        return out.detach(), list(grads)


def make_case(
    grid: tuple[int, int] = (5, 7),
    *,
    prefix: int = 0,
    masked: bool = False,
    loud: bool = False,
    dtype: torch.dtype = torch.float64,
    batch: int = 2,
    seed: int = 0,
    **options: Any,
) -> Case:
    """Random operands with two heads of width 4 and frozen clusters.

    ``masked`` hides a third of the first image's tokens and all of the second's. ``loud`` lets one key outweigh its
    whole cluster, so that its remainder outside the window is not resolved.
    """
    generator = torch.Generator().manual_seed(seed)
    num_tokens = grid[0] * grid[1]
    q, k, v = (
        torch.randn(batch, prefix + num_tokens, 2, 4, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    if loud:
        k[:, prefix] *= 12
        q += 2
    arguments: dict[str, Any] = {"grid_size": list(grid), "num_prefix_tokens": prefix}
    if masked:
        mask = torch.rand(batch, num_tokens, generator=generator) > 0.3
        mask[1] = False
        arguments["token_mask"] = mask
    case = Case([x.to(dtype).requires_grad_() for x in (q, k, v)], make_options(**options), arguments)
    _, routing = cast_attention(*case.operands, case.options, **arguments)
    case.arguments["routing"] = routing
    return case


def routing_of(labels: list[list[int]], num_clusters: int) -> Routing:
    """Clusters of free size by hand."""
    return Routing("nearest", num_clusters, torch.tensor(labels), None)
