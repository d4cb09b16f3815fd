from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from castvision.ops import cast_attention


@dataclass
class Case:
    """Operands of one call, and its options."""

    operands: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, backend: str, **more: Any) -> Tensor:
        o = self.operands
        return cast_attention(
            o["q"], o["k"], o["v"], o["surrogates"], o["phi"], q_route=o.get("q_route"), k_route=o.get("k_route"),
            backend=backend, **{**self.options, **more},
        )  # fmt: skip

    def gradients(self, backend: str, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        out, _ = self.run(backend)
        names = list(self.operands)
        grads = torch.autograd.grad(
            (out * weight).sum(), [self.operands[n] for n in names], allow_unused=True, materialize_grads=True
        )
        return out.detach(), dict(zip(names, grads, strict=True))


def make_case(
    num_tokens: int = 13,
    num_clusters: int = 4,
    cluster_size: int | None = None,
    *,
    prefix: int = 0,
    own_route: bool = False,
    masked: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> Case:
    """Random operands with two images, two heads, D = 4; the routing is frozen into the options."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    length = prefix + num_tokens
    operands = {name: draw(2, 2, length, 4) for name in ("q", "k", "v")}
    operands["surrogates"], operands["phi"] = draw(2, num_clusters, 4), draw(2, num_tokens, 1)
    if own_route:
        operands["q_route"], operands["k_route"] = draw(2, 2, length, 4), draw(2, 2, length, 4)
    if masked:
        mask = torch.rand(2, num_tokens, generator=generator) > 0.3
        mask[1] = False
        options["token_mask"] = mask
    case = Case(operands, {"num_prefix_tokens": prefix, "cluster_size": cluster_size, **options})
    _, routing = case.run("fused")
    case.options["routing"] = routing
    return case
