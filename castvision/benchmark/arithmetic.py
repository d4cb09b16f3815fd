"""Floating-point operations, two for a multiply-add: the floor of time, and what torch's counter lacks."""

from __future__ import annotations

from typing import Any


def attend_flops(tokens: int, clusters: int, cluster_size: int, width: int) -> int:
    """Attention of N queries to K members and M summaries, and the summaries' keys and values."""
    return 4 * tokens * (cluster_size + clusters) * width + 6 * tokens * width


def route_flops(tokens: int, clusters: int, width: int) -> int:
    """Scores of N queries and N keys with M surrogates."""
    return 4 * tokens * clusters * width


def layer_flops(tokens: int, clusters: int, width: int) -> int:
    """A CAST layer: the projections to q, k, v and back, routing, attention, with K = ceil(N / M)."""
    size = -(-tokens // clusters)
    return 8 * tokens * width**2 + route_flops(tokens, clusters, width) + attend_flops(tokens, clusters, size, width)


def operand_bytes(tokens: int, width: int, itemsize: int) -> int:
    """What every attention layer holds: its input, q, k, v and its output."""
    return 5 * tokens * width * itemsize


def flop_formulas() -> dict[Any, Any]:
    """Formulas of our operators for :class:`torch.utils.flop_counter.FlopCounterMode`, which sees each as one node."""
    import torch

    def attend(q: Any, k: Any, v: Any, surrogates: Any, phi: Any, index: Any, *rest: Any, **named: Any) -> int:
        batch, heads, tokens, head_dim = q
        return int(batch * attend_flops(tokens, index[1], index[2], heads * head_dim))

    def route(q: Any, k: Any, surrogates: Any, *rest: Any, **named: Any) -> int:
        batch, heads, tokens, head_dim = q
        return int(batch * route_flops(tokens, surrogates[1], heads * head_dim))

    return {torch.ops.castvision.attend: attend, torch.ops.castvision.route: route}
